// The few functions of CPython's stable ABI that HookPoints need, and of the DLPack exchange API of PyTorch. They are
// declared here, so that neither Python's nor PyTorch's headers are needed to build, and one build serves all versions.
// The interpreter that loads the library defines them; in any other process they are null.
#pragma once

#include <cstdint>

extern "C" {

struct _object;
using PyObject = _object;
struct _ts;

using PyFastCall = PyObject *(*)(PyObject *self, PyObject *const *args, intptr_t count);
struct PyMethodDef {
    const char *name;
    PyFastCall call;
    int flags;
    const char *doc;
};
constexpr int METH_FASTCALL = 0x80;

#define SONDE_PYTHON extern __attribute__((weak))
SONDE_PYTHON PyObject *PyCFunction_NewEx(PyMethodDef *method, PyObject *self, PyObject *module);
SONDE_PYTHON PyObject *PyTuple_New(intptr_t count);
SONDE_PYTHON int PyTuple_SetItem(PyObject *tuple, intptr_t i, PyObject *stolen);
SONDE_PYTHON PyObject *PyTuple_GetItem(PyObject *tuple, intptr_t i);
SONDE_PYTHON intptr_t PyList_Size(PyObject *list);
SONDE_PYTHON PyObject *PyList_GetItem(PyObject *list, intptr_t i);
SONDE_PYTHON PyObject *PyLong_FromLong(long value);
SONDE_PYTHON long PyLong_AsLong(PyObject *number);
SONDE_PYTHON void *PyLong_AsVoidPtr(PyObject *number);
SONDE_PYTHON PyObject *PyBytes_FromStringAndSize(const char *bytes, intptr_t count);
SONDE_PYTHON PyObject *PyUnicode_InternFromString(const char *text);
SONDE_PYTHON PyObject *PyObject_GetAttr(PyObject *object, PyObject *name);
SONDE_PYTHON PyObject *PyObject_Type(PyObject *object);
SONDE_PYTHON void *PyCapsule_GetPointer(PyObject *capsule, const char *name);
SONDE_PYTHON PyObject *PyErr_Occurred();
SONDE_PYTHON void PyErr_Clear();
SONDE_PYTHON void Py_IncRef(PyObject *object);
SONDE_PYTHON void Py_DecRef(PyObject *object);
SONDE_PYTHON _ts *PyEval_SaveThread();
SONDE_PYTHON void PyEval_RestoreThread(_ts *state);
SONDE_PYTHON PyObject _Py_NoneStruct;

} // extern "C"

namespace sonde::dlpack {

constexpr uint32_t major_version = 1;
constexpr int32_t cpu = 1;
constexpr uint8_t code_int = 0, code_bool = 6;

struct Tensor {
    void *data;
    int32_t device_type, device_id;
    int32_t dims;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; // counted in elements
    uint64_t byte_offset;
};

struct Exchange {
    uint32_t major, minor;
    const Exchange *older;
    void *allocate, *managed_from_object, *managed_to_object;
    int (*tensor_from_object)(void *object, Tensor *out); // borrows; 0: it succeeded
    void *current_stream;
};

} // namespace sonde::dlpack
