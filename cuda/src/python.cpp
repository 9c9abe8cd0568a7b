// What HookPoints do at every token, as builtin functions of the interpreter that has loaded the library. Each reads
// tensors through the exchange API of PyTorch, without an attribute of theirs: after a forward nothing of all that is
// in the processor's caches, and what a few lines of Python would touch costs more than the copy itself.

#include <array>
#include <cstring>

#include "interpreter.h"
#include "writer.h"

using namespace sonde;

namespace {

constexpr int32_t most_dims = SONDE_MAX_DIMS + 2; // those of a row, the batch and the tokens

// How a tensor lies in memory, but for where. Python keeps it and never looks inside.
struct Description {
    int64_t device_type, device_id, dims, code, bits, lanes;
    std::array<int64_t, most_dims> shape, strides;
};

// One tensor that a step takes.
struct Tap {
    int64_t index;
    int64_t offset; // bytes in front of the first row; -1: it is not captured
    Description description;
};

// A step whose addresses alone change. hookpoint/sonde/native.py lays out the same words.
struct Step {
    sonde_writer *writer;
    const sonde_range *ranges;
    uint64_t range_count;
    const uint32_t *layouts;
    uint64_t layout_count;
    sonde_copy *copies;
    uint64_t copy_count;
    uint64_t *number;
    uint64_t tap_count;
    // Behind it: the taps.
    const Tap *taps() const { return reinterpret_cast<const Tap *>(this + 1); }
};

// Of the one interpreter of the process. Set once, before the functions exist.
const dlpack::Exchange *exchange = nullptr;
PyObject *tensor_type = nullptr, *version_name = nullptr;

PyObject *none() {
    Py_IncRef(&_Py_NoneStruct);
    return &_Py_NoneStruct;
}

// Reads a tensor that nobody made a subclass of. false: it is something else, or cannot be read.
bool read(PyObject *x, dlpack::Tensor *out) {
    PyObject *type = PyObject_Type(x);
    Py_DecRef(type); // the object keeps it
    if (type != tensor_type) return false;
    *out = dlpack::Tensor{};
    if (exchange->tensor_from_object(x, out) == 0) return out->dims == 0 || out->strides != nullptr;
    PyErr_Clear();
    return false;
}

bool describe(const dlpack::Tensor &t, Description *out) {
    if (t.dims < 0 || t.dims > most_dims) return false;
    *out = Description{t.device_type, t.device_id, t.dims, t.code, t.bits, t.lanes, {}, {}};
    for (size_t i = 0; i < static_cast<size_t>(t.dims); i++) {
        out->shape[i] = t.shape[i];
        out->strides[i] = t.strides[i];
    }
    return true;
}

bool fits(const dlpack::Tensor &t, const Description &d) {
    if (t.dims != d.dims || t.code != d.code || t.bits != d.bits || t.lanes != d.lanes ||
        t.device_type != d.device_type || t.device_id != d.device_id)
        return false;
    for (size_t i = 0; i < static_cast<size_t>(t.dims); i++)
        if (t.shape[i] != d.shape[i] || t.strides[i] != d.strides[i]) return false;
    return true;
}

// Says whether nothing has changed a tensor since its version was noted; None: it has none, or is a copy.
bool unchanged(PyObject *x, PyObject *noted) {
    if (noted == &_Py_NoneStruct) return true;
    PyObject *now = PyObject_GetAttr(x, version_name);
    const bool same = now != nullptr && PyLong_AsLong(now) == PyLong_AsLong(noted);
    if (now != nullptr) Py_DecRef(now);
    if (PyErr_Occurred() == nullptr) return same;
    PyErr_Clear();
    return false;
}

// Points the copies of a step at what was tapped; false: it does not fit, and anything may be in the addresses.
bool aim(const Step &step, PyObject *taken) {
    if (PyList_Size(taken) != static_cast<intptr_t>(step.tap_count)) return false;
    uint64_t copy = 0;
    for (uint64_t i = 0; i < step.tap_count; i++) {
        const Tap &tap = step.taps()[i];
        PyObject *item = PyList_GetItem(taken, static_cast<intptr_t>(i)); // a tuple: index, tensor, version
        PyObject *x = PyTuple_GetItem(item, 1);
        dlpack::Tensor t;
        if (PyLong_AsLong(PyTuple_GetItem(item, 0)) != tap.index || !read(x, &t) || !fits(t, tap.description))
            return false;
        if (tap.offset < 0) continue;
        if (!unchanged(x, PyTuple_GetItem(item, 2)) || copy >= step.copy_count) return false;
        step.copies[copy++].src = static_cast<const uint8_t *>(t.data) + t.byte_offset + tap.offset;
    }
    return copy == step.copy_count;
}

// describe(tensor): its description, or None for what a step cannot be told in advance about.
PyObject *python_describe(PyObject *, PyObject *const *args, intptr_t count) {
    dlpack::Tensor t;
    Description d;
    if (count != 1 || !read(args[0], &t) || !describe(t, &d)) return none();
    return PyBytes_FromStringAndSize(reinterpret_cast<const char *>(&d), sizeof d);
}

// run(taken, address of the step): the status of sonde_step_run, or 1: what was tapped does not fit, nothing happened.
PyObject *python_run(PyObject *, PyObject *const *args, intptr_t count) {
    const auto *step = count == 2 ? static_cast<const Step *>(PyLong_AsVoidPtr(args[1])) : nullptr;
    if (step == nullptr || !aim(*step, args[0])) return PyLong_FromLong(1);
    _ts *held = PyEval_SaveThread(); // callbacks of the library may want it, and a step may wait for room
    const sonde_status s = sonde_step_run(step->writer, step->ranges, static_cast<uint32_t>(step->range_count),
                                          step->layouts, static_cast<uint32_t>(step->layout_count), step->copies,
                                          static_cast<uint32_t>(step->copy_count), step->number);
    PyEval_RestoreThread(held);
    return PyLong_FromLong(s);
}

bool is_table(const dlpack::Tensor &t, int64_t rows, int64_t columns) {
    return t.code == dlpack::code_int && t.bits == 64 && t.lanes == 1 && t.dims == 2 && t.shape[0] == rows &&
           t.shape[1] == columns;
}

const int64_t *elements(const dlpack::Tensor &t) {
    return reinterpret_cast<const int64_t *>(static_cast<const uint8_t *>(t.data) + t.byte_offset);
}

// advance(ids, full, rows, columns, address of ranges, their count): whether ids, of one column, are the last of so
// many columns of full. Then each range was moved on by a token. What lies on a GPU is only measured: reading it would
// wait.
PyObject *python_advance(PyObject *, PyObject *const *args, intptr_t count) {
    dlpack::Tensor ids, full;
    if (count != 6 || !read(args[0], &ids) || !read(args[1], &full)) return PyLong_FromLong(0);
    const int64_t rows = PyLong_AsLong(args[2]), columns = PyLong_AsLong(args[3]);
    if (columns < 1 || !is_table(ids, rows, 1) || !is_table(full, rows, columns) ||
        ids.device_type != full.device_type)
        return PyLong_FromLong(0);
    if (ids.device_type == dlpack::cpu) {
        const int64_t *one = elements(ids), *all = elements(full) + (columns - 1) * full.strides[1];
        for (int64_t i = 0; i < rows; i++)
            if (one[i * ids.strides[0]] != all[i * full.strides[0]]) return PyLong_FromLong(0);
    }
    auto *ranges = static_cast<sonde_range *>(PyLong_AsVoidPtr(args[4]));
    const long moved = PyLong_AsLong(args[5]);
    for (long i = 0; i < moved; i++) ranges[i].position++;
    return PyLong_FromLong(1);
}

// are_false(tensor): whether it holds booleans of the host in one dimension, all false.
PyObject *python_are_false(PyObject *, PyObject *const *args, intptr_t count) {
    dlpack::Tensor t;
    if (count != 1 || !read(args[0], &t) || t.device_type != dlpack::cpu || t.code != dlpack::code_bool ||
        t.bits != 8 || t.lanes != 1 || t.dims != 1)
        return PyLong_FromLong(0);
    const auto *flags = static_cast<const uint8_t *>(t.data) + t.byte_offset;
    bool any = false;
    for (int64_t i = 0; i < t.shape[0]; i++) any = any || flags[i * t.strides[0]] != 0;
    return PyLong_FromLong(any ? 0 : 1);
}

std::array<PyMethodDef, 4> functions{{
    {"describe", python_describe, METH_FASTCALL, nullptr},
    {"run", python_run, METH_FASTCALL, nullptr},
    {"advance", python_advance, METH_FASTCALL, nullptr},
    {"are_false", python_are_false, METH_FASTCALL, nullptr},
}};

} // namespace

extern "C" void *sonde_python(void *capsule, void *type) {
    if (PyCapsule_GetPointer == nullptr) return nullptr; // this is no interpreter
    const auto *table = static_cast<const dlpack::Exchange *>(
        PyCapsule_GetPointer(static_cast<PyObject *>(capsule), "dlpack_exchange_api"));
    if (table == nullptr) return nullptr;
    while (table != nullptr && table->major > dlpack::major_version) table = table->older;
    if (table == nullptr || table->major != dlpack::major_version || table->tensor_from_object == nullptr)
        return none();
    exchange = table;
    tensor_type = static_cast<PyObject *>(type);
    Py_IncRef(tensor_type);
    version_name = PyUnicode_InternFromString("_version");
    PyObject *out = PyTuple_New(functions.size());
    for (size_t i = 0; out != nullptr && i < functions.size(); i++)
        (void)PyTuple_SetItem(out, static_cast<intptr_t>(i), PyCFunction_NewEx(&functions[i], nullptr, nullptr));
    return out;
}
