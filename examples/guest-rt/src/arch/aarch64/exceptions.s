// The 16 vectors, 128 bytes each: saves what a Rust function may change, and
// the state to return to, and joins the common part.

    .section .text.exceptions, "ax", %progbits
    .p2align 11
    .global exception_vectors
exception_vectors:
    .set vector, 0
    .rept 16
    .p2align 7
    sub sp, sp, #192
    stp x0, x1, [sp]
    mov x0, #vector
    b exception_common
    .set vector, vector + 1
    .endr

    .p2align 7
exception_common:
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x30, [sp, #144]
    mrs x2, elr_el1
    mrs x3, spsr_el1
    stp x2, x3, [sp, #160]
    mov x1, sp
    bl {dispatch}
    ldp x2, x3, [sp, #160]
    msr elr_el1, x2
    msr spsr_el1, x3
    ldp x18, x30, [sp, #144]
    ldp x16, x17, [sp, #128]
    ldp x14, x15, [sp, #112]
    ldp x12, x13, [sp, #96]
    ldp x10, x11, [sp, #80]
    ldp x8, x9, [sp, #64]
    ldp x6, x7, [sp, #48]
    ldp x4, x5, [sp, #32]
    ldp x2, x3, [sp, #16]
    ldp x0, x1, [sp]
    add sp, sp, #192
    eret
    .text
