#include "textflag.h"

// The same sums as in avx512_amd64.s, in the same order: two registers of eight
// lanes stand for one of sixteen.

#define WIDEN_F32(src, dst) \
	VMOVUPS src, dst

#define WIDEN_BF16(src, dst) \
	VPMOVZXWD src, dst \
	VPSLLD    $16, dst, dst

#define WIDEN_F16(src, dst) \
	VCVTPH2PS src, dst

// FOLD adds the lanes of two registers, of which x is the low half of y, up to
// four in x.
#define FOLD(y, high, x) \
	VADDPS       high, y, y  \
	VEXTRACTF128 $1, y, X15  \
	VADDPS       X15, x, x

// DOT is a whole function. SI: the row, whose elements have size bytes; DI: w; CX: n.
#define DOT(WIDEN, size) \
	MOVQ   row+0(FP), SI          \
	MOVQ   w+8(FP), DI            \
	MOVQ   n+16(FP), CX           \
	VXORPS Y0, Y0, Y0             \
	VXORPS Y1, Y1, Y1             \
	CMPQ   CX, $64                \
	JLT    sixteen                \
	VXORPS Y2, Y2, Y2             \
	VXORPS Y3, Y3, Y3             \
	VXORPS Y4, Y4, Y4             \
	VXORPS Y5, Y5, Y5             \
	VXORPS Y6, Y6, Y6             \
	VXORPS Y7, Y7, Y7             \
loop:                             \
	WIDEN((SI), Y8)               \
	WIDEN((8*size)(SI), Y9)       \
	WIDEN((16*size)(SI), Y10)     \
	WIDEN((24*size)(SI), Y11)     \
	VFMADD231PS (DI), Y8, Y0      \
	VFMADD231PS 32(DI), Y9, Y1    \
	VFMADD231PS 64(DI), Y10, Y2   \
	VFMADD231PS 96(DI), Y11, Y3   \
	WIDEN((32*size)(SI), Y12)     \
	WIDEN((40*size)(SI), Y13)     \
	WIDEN((48*size)(SI), Y14)     \
	WIDEN((56*size)(SI), Y15)     \
	VFMADD231PS 128(DI), Y12, Y4  \
	VFMADD231PS 160(DI), Y13, Y5  \
	VFMADD231PS 192(DI), Y14, Y6  \
	VFMADD231PS 224(DI), Y15, Y7  \
	ADDQ   $(64*size), SI         \
	ADDQ   $256, DI               \
	SUBQ   $64, CX                \
	CMPQ   CX, $64                \
	JGE    loop                   \
	VADDPS Y2, Y0, Y0             \
	VADDPS Y3, Y1, Y1             \
	VADDPS Y6, Y4, Y4             \
	VADDPS Y7, Y5, Y5             \
	VADDPS Y4, Y0, Y0             \
	VADDPS Y5, Y1, Y1             \
sixteen:                          \
	TESTQ  CX, CX                 \
	JLE    done                   \
	WIDEN((SI), Y8)               \
	WIDEN((8*size)(SI), Y9)       \
	VFMADD231PS (DI), Y8, Y0      \
	VFMADD231PS 32(DI), Y9, Y1    \
	ADDQ   $(16*size), SI         \
	ADDQ   $64, DI                \
	SUBQ   $16, CX                \
	JMP    sixteen                \
done:                             \
	FOLD(Y0, Y1, X0)              \
	VHADDPS X0, X0, X0            \
	VHADDPS X0, X0, X0            \
	VMOVSS  X0, ret+24(FP)        \
	VZEROUPPER                    \
	RET

// func dotF32AVX2(row unsafe.Pointer, w *float32, n int) float32
TEXT ·dotF32AVX2(SB), NOSPLIT, $0-28
	DOT(WIDEN_F32, 4)

// func dotBF16AVX2(row unsafe.Pointer, w *float32, n int) float32
TEXT ·dotBF16AVX2(SB), NOSPLIT, $0-28
	DOT(WIDEN_BF16, 2)

// func dotF16AVX2(row unsafe.Pointer, w *float32, n int) float32
TEXT ·dotF16AVX2(SB), NOSPLIT, $0-28
	DOT(WIDEN_F16, 2)

// func mul4x1AVX2(w *uint16, x *float32, dst *float32, k int)
// SI, R8, R9, R10: the rows, with their sums in Y0 and Y1, Y2 and Y3, ...
TEXT ·mul4x1AVX2(SB), NOSPLIT, $0-32
	MOVQ   w+0(FP), SI
	MOVQ   x+8(FP), DI
	MOVQ   dst+16(FP), DX
	MOVQ   k+24(FP), CX
	LEAQ   (SI)(CX*2), R8
	LEAQ   (R8)(CX*2), R9
	LEAQ   (R9)(CX*2), R10
	VXORPS Y0, Y0, Y0
	VXORPS Y1, Y1, Y1
	VXORPS Y2, Y2, Y2
	VXORPS Y3, Y3, Y3
	VXORPS Y4, Y4, Y4
	VXORPS Y5, Y5, Y5
	VXORPS Y6, Y6, Y6
	VXORPS Y7, Y7, Y7
	XORQ   AX, AX

loop:
	VMOVUPS (DI)(AX*4), Y12
	VMOVUPS 32(DI)(AX*4), Y13
	WIDEN_BF16((SI)(AX*2), Y8)
	WIDEN_BF16(16(SI)(AX*2), Y9)
	WIDEN_BF16((R8)(AX*2), Y10)
	WIDEN_BF16(16(R8)(AX*2), Y11)
	VFMADD231PS Y12, Y8, Y0
	VFMADD231PS Y13, Y9, Y1
	VFMADD231PS Y12, Y10, Y2
	VFMADD231PS Y13, Y11, Y3
	WIDEN_BF16((R9)(AX*2), Y8)
	WIDEN_BF16(16(R9)(AX*2), Y9)
	WIDEN_BF16((R10)(AX*2), Y10)
	WIDEN_BF16(16(R10)(AX*2), Y11)
	VFMADD231PS Y12, Y8, Y4
	VFMADD231PS Y13, Y9, Y5
	VFMADD231PS Y12, Y10, Y6
	VFMADD231PS Y13, Y11, Y7
	ADDQ $16, AX
	CMPQ AX, CX
	JLT  loop

	FOLD(Y0, Y1, X0)
	FOLD(Y2, Y3, X2)
	FOLD(Y4, Y5, X4)
	FOLD(Y6, Y7, X6)
	VHADDPS X2, X0, X0
	VHADDPS X6, X4, X4
	VHADDPS X4, X0, X0
	VMOVUPS X0, (DX)
	VZEROUPPER
	RET

// func rowsF32AVX2(dst, q, rows *float32, stride, n, count int)
TEXT ·rowsF32AVX2(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DX
	MOVQ q+8(FP), DI
	MOVQ rows+16(FP), SI
	MOVQ stride+24(FP), BX
	MOVQ n+32(FP), CX
	MOVQ count+40(FP), R8

row:
	VXORPS Y0, Y0, Y0
	VXORPS Y1, Y1, Y1
	XORQ   AX, AX

loop:
	VMOVUPS     (SI)(AX*4), Y8
	VMOVUPS     32(SI)(AX*4), Y9
	VFMADD231PS (DI)(AX*4), Y8, Y0
	VFMADD231PS 32(DI)(AX*4), Y9, Y1
	ADDQ        $16, AX
	CMPQ        AX, CX
	JLT         loop
	FOLD(Y0, Y1, X0)
	VHADDPS     X0, X0, X0
	VHADDPS     X0, X0, X0
	VMOVSS      X0, (DX)
	ADDQ        $4, DX
	LEAQ        (SI)(BX*4), SI
	DECQ        R8
	JNZ         row
	VZEROUPPER
	RET

// func addRowsAVX2(dst, weights, rows *float32, stride, n, count int)
// For each 16 elements of dst, all rows: the sum stays in registers.
TEXT ·addRowsAVX2(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DX
	MOVQ weights+8(FP), DI
	MOVQ rows+16(FP), SI
	MOVQ stride+24(FP), BX
	MOVQ n+32(FP), CX
	MOVQ count+40(FP), R8

chunk:
	VMOVUPS (DX), Y0
	VMOVUPS 32(DX), Y1
	MOVQ    SI, R9
	XORQ    AX, AX

loop:
	VBROADCASTSS (DI)(AX*4), Y2
	VFMADD231PS  (R9), Y2, Y0
	VFMADD231PS  32(R9), Y2, Y1
	LEAQ         (R9)(BX*4), R9
	INCQ         AX
	CMPQ         AX, R8
	JLT          loop
	VMOVUPS      Y0, (DX)
	VMOVUPS      Y1, 32(DX)
	ADDQ         $64, DX
	ADDQ         $64, SI
	SUBQ         $16, CX
	JNZ          chunk
	VZEROUPPER
	RET
