#include "textflag.h"

// All loops take 16 elements at a time. A dot product has four sums of 16 lanes,
// of which the shorter loop uses the first; the products of a matrix and of
// rows have one, so that their bits do not depend on what else is computed.

#define WIDEN_F32(src, dst) \
	VMOVUPS src, dst

#define WIDEN_BF16(src, dst) \
	VPMOVZXWD src, dst \
	VPSLLD    $16, dst, dst

#define WIDEN_F16(src, dst) \
	VCVTPH2PS src, dst

// FOLD adds the 16 lanes of z, whose low parts are x and y, up to four.
#define FOLD(z) \
	VEXTRACTF64X4 $1, z, Y20    \
	VADDPS        Z20, z, z     \
	VEXTRACTF32X4 $1, z, X20    \
	VADDPS        Z20, z, z

// DOT is a whole function. SI: the row, whose elements have size bytes; DI: w; CX: n.
#define DOT(WIDEN, size) \
	MOVQ   row+0(FP), SI          \
	MOVQ   w+8(FP), DI            \
	MOVQ   n+16(FP), CX           \
	VXORPS X0, X0, X0             \
	CMPQ   CX, $64                \
	JLT    sixteen                \
	VXORPS X1, X1, X1             \
	VXORPS X2, X2, X2             \
	VXORPS X3, X3, X3             \
loop:                             \
	WIDEN((SI), Z4)               \
	WIDEN((16*size)(SI), Z5)      \
	WIDEN((32*size)(SI), Z6)      \
	WIDEN((48*size)(SI), Z7)      \
	VFMADD231PS (DI), Z4, Z0      \
	VFMADD231PS 64(DI), Z5, Z1    \
	VFMADD231PS 128(DI), Z6, Z2   \
	VFMADD231PS 192(DI), Z7, Z3   \
	ADDQ   $(64*size), SI         \
	ADDQ   $256, DI               \
	SUBQ   $64, CX                \
	CMPQ   CX, $64                \
	JGE    loop                   \
	VADDPS Z1, Z0, Z0             \
	VADDPS Z3, Z2, Z2             \
	VADDPS Z2, Z0, Z0             \
sixteen:                          \
	TESTQ  CX, CX                 \
	JLE    done                   \
	WIDEN((SI), Z4)               \
	VFMADD231PS (DI), Z4, Z0      \
	ADDQ   $(16*size), SI         \
	ADDQ   $64, DI                \
	SUBQ   $16, CX                \
	JMP    sixteen                \
done:                             \
	FOLD(Z0)                      \
	VHADDPS X0, X0, X0            \
	VHADDPS X0, X0, X0            \
	VMOVSS  X0, ret+24(FP)        \
	VZEROUPPER                    \
	RET

// func dotF32AVX512(row unsafe.Pointer, w *float32, n int) float32
TEXT ·dotF32AVX512(SB), NOSPLIT, $0-28
	DOT(WIDEN_F32, 4)

// func dotBF16AVX512(row unsafe.Pointer, w *float32, n int) float32
TEXT ·dotBF16AVX512(SB), NOSPLIT, $0-28
	DOT(WIDEN_BF16, 2)

// func dotF16AVX512(row unsafe.Pointer, w *float32, n int) float32
TEXT ·dotF16AVX512(SB), NOSPLIT, $0-28
	DOT(WIDEN_F16, 2)

// STORE4 writes the sums of the lanes of four registers side by side.
#define STORE4(z0, z1, z2, z3, x0, x1, x2, x3, dst) \
	FOLD(z0)                \
	FOLD(z1)                \
	FOLD(z2)                \
	FOLD(z3)                \
	VHADDPS x1, x0, x0      \
	VHADDPS x3, x2, x2      \
	VHADDPS x2, x0, x0      \
	VMOVUPS x0, dst

// func mul4x4AVX512(w *uint16, x *float32, dst *float32, stride, k int)
// SI, R8, R9, R10: the rows; DI, R11, R12, R13: the inputs; Z(4*j+i): row i, input j.
TEXT ·mul4x4AVX512(SB), NOSPLIT, $0-40
	MOVQ   w+0(FP), SI
	MOVQ   x+8(FP), DI
	MOVQ   dst+16(FP), DX
	MOVQ   stride+24(FP), BX
	MOVQ   k+32(FP), CX
	LEAQ   (SI)(CX*2), R8
	LEAQ   (R8)(CX*2), R9
	LEAQ   (R9)(CX*2), R10
	LEAQ   (DI)(CX*4), R11
	LEAQ   (R11)(CX*4), R12
	LEAQ   (R12)(CX*4), R13
	VXORPS X0, X0, X0
	VXORPS X1, X1, X1
	VXORPS X2, X2, X2
	VXORPS X3, X3, X3
	VXORPS X4, X4, X4
	VXORPS X5, X5, X5
	VXORPS X6, X6, X6
	VXORPS X7, X7, X7
	VXORPS X8, X8, X8
	VXORPS X9, X9, X9
	VXORPS X10, X10, X10
	VXORPS X11, X11, X11
	VXORPS X12, X12, X12
	VXORPS X13, X13, X13
	VXORPS X14, X14, X14
	VXORPS X15, X15, X15
	XORQ   AX, AX

loop:
	WIDEN_BF16((SI)(AX*2), Z16)
	WIDEN_BF16((R8)(AX*2), Z17)
	WIDEN_BF16((R9)(AX*2), Z18)
	WIDEN_BF16((R10)(AX*2), Z19)
	VMOVUPS     (DI)(AX*4), Z20
	VMOVUPS     (R11)(AX*4), Z21
	VMOVUPS     (R12)(AX*4), Z22
	VMOVUPS     (R13)(AX*4), Z23
	VFMADD231PS Z20, Z16, Z0
	VFMADD231PS Z20, Z17, Z1
	VFMADD231PS Z20, Z18, Z2
	VFMADD231PS Z20, Z19, Z3
	VFMADD231PS Z21, Z16, Z4
	VFMADD231PS Z21, Z17, Z5
	VFMADD231PS Z21, Z18, Z6
	VFMADD231PS Z21, Z19, Z7
	VFMADD231PS Z22, Z16, Z8
	VFMADD231PS Z22, Z17, Z9
	VFMADD231PS Z22, Z18, Z10
	VFMADD231PS Z22, Z19, Z11
	VFMADD231PS Z23, Z16, Z12
	VFMADD231PS Z23, Z17, Z13
	VFMADD231PS Z23, Z18, Z14
	VFMADD231PS Z23, Z19, Z15
	ADDQ        $16, AX
	CMPQ        AX, CX
	JLT         loop

	STORE4(Z0, Z1, Z2, Z3, X0, X1, X2, X3, (DX))
	LEAQ (DX)(BX*4), DX
	STORE4(Z4, Z5, Z6, Z7, X4, X5, X6, X7, (DX))
	LEAQ (DX)(BX*4), DX
	STORE4(Z8, Z9, Z10, Z11, X8, X9, X10, X11, (DX))
	LEAQ (DX)(BX*4), DX
	STORE4(Z12, Z13, Z14, Z15, X12, X13, X14, X15, (DX))
	VZEROUPPER
	RET

// func mul4x1AVX512(w *uint16, x *float32, dst *float32, k int)
TEXT ·mul4x1AVX512(SB), NOSPLIT, $0-32
	MOVQ   w+0(FP), SI
	MOVQ   x+8(FP), DI
	MOVQ   dst+16(FP), DX
	MOVQ   k+24(FP), CX
	LEAQ   (SI)(CX*2), R8
	LEAQ   (R8)(CX*2), R9
	LEAQ   (R9)(CX*2), R10
	VXORPS X0, X0, X0
	VXORPS X1, X1, X1
	VXORPS X2, X2, X2
	VXORPS X3, X3, X3
	XORQ   AX, AX

loop:
	WIDEN_BF16((SI)(AX*2), Z16)
	WIDEN_BF16((R8)(AX*2), Z17)
	WIDEN_BF16((R9)(AX*2), Z18)
	WIDEN_BF16((R10)(AX*2), Z19)
	VMOVUPS     (DI)(AX*4), Z20
	VFMADD231PS Z20, Z16, Z0
	VFMADD231PS Z20, Z17, Z1
	VFMADD231PS Z20, Z18, Z2
	VFMADD231PS Z20, Z19, Z3
	ADDQ        $16, AX
	CMPQ        AX, CX
	JLT         loop

	STORE4(Z0, Z1, Z2, Z3, X0, X1, X2, X3, (DX))
	VZEROUPPER
	RET

// func rowsF32AVX512(dst, q, rows *float32, stride, n, count int)
TEXT ·rowsF32AVX512(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DX
	MOVQ q+8(FP), DI
	MOVQ rows+16(FP), SI
	MOVQ stride+24(FP), BX
	MOVQ n+32(FP), CX
	MOVQ count+40(FP), R8

row:
	VXORPS X0, X0, X0
	XORQ   AX, AX

loop:
	VMOVUPS     (SI)(AX*4), Z4
	VFMADD231PS (DI)(AX*4), Z4, Z0
	ADDQ        $16, AX
	CMPQ        AX, CX
	JLT         loop
	FOLD(Z0)
	VHADDPS     X0, X0, X0
	VHADDPS     X0, X0, X0
	VMOVSS      X0, (DX)
	ADDQ        $4, DX
	LEAQ        (SI)(BX*4), SI
	DECQ        R8
	JNZ         row
	VZEROUPPER
	RET

// func addRowsAVX512(dst, weights, rows *float32, stride, n, count int)
// For each 16 elements of dst, all rows: the sum stays in a register.
TEXT ·addRowsAVX512(SB), NOSPLIT, $0-48
	MOVQ dst+0(FP), DX
	MOVQ weights+8(FP), DI
	MOVQ rows+16(FP), SI
	MOVQ stride+24(FP), BX
	MOVQ n+32(FP), CX
	MOVQ count+40(FP), R8

chunk:
	VMOVUPS (DX), Z0
	MOVQ    SI, R9
	XORQ    AX, AX

loop:
	VBROADCASTSS (DI)(AX*4), Z1
	VFMADD231PS  (R9), Z1, Z0
	LEAQ         (R9)(BX*4), R9
	INCQ         AX
	CMPQ         AX, R8
	JLT          loop
	VMOVUPS      Z0, (DX)
	ADDQ         $64, DX
	ADDQ         $64, SI
	SUBQ         $16, CX
	JNZ          chunk
	VZEROUPPER
	RET
