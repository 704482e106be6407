//! From the machine's start to `main`: the direct boot of PVH (a kernel of QEMU's option `-kernel`).
//!
//! ```text
//! QEMU, firmware ──► pvh_start: 32-bit, no paging,  ──► long_start: 64-bit, memory is   ──► crate::start
//! load the image     EBX: the start information         mapped where it is, SSE is on
//! ```
//!
//! The first 512 GiB of addresses are mapped to themselves, by one table of pages of 1 GiB, which the processor is to
//! have (QEMU: `-cpu max`): so a pointer is a physical address, and registers of devices are where they are. What may be cached
//! is for the firmware's MTRRs to say.

use core::arch::global_asm;

global_asm!(
    // What tells a loader that this is a PVH kernel, and where it begins: XEN_ELFNOTE_PHYS32_ENTRY.
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad pvh_start",
    ".popsection",
    // Tables and the stack.
    ".pushsection .bss.boot, \"aw\", @nobits",
    ".balign 4096",
    "level_4: .skip 4096",
    "level_3: .skip 4096",
    "stack: .skip {stack_size}",
    "stack_end:",
    ".popsection",
    ".pushsection .rodata.boot, \"a\"",
    ".balign 8",
    // Segments: none, code of 64 bits, data.
    "gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "gdt_pointer: .word gdt_pointer - gdt - 1",
    ".long gdt",
    ".popsection",
    ".pushsection .text.boot, \"ax\"",
    ".code32",
    ".global pvh_start",
    "pvh_start:",
    "cld",
    "mov esp, offset stack_end",
    "mov edi, ebx",
    // Level 4 has one entry: level 3 (present, writable), whose entries are pages of 1 GiB.
    "mov eax, offset level_3",
    "or eax, 3",
    "mov dword ptr [level_4], eax",
    "xor ecx, ecx",
    "2:",
    "mov eax, ecx",
    "shl eax, 30",
    "or eax, 0x83",
    "mov dword ptr [level_3 + ecx * 8], eax",
    "mov eax, ecx",
    "shr eax, 2",
    "mov dword ptr [level_3 + ecx * 8 + 4], eax",
    "inc ecx",
    "cmp ecx, 512",
    "jne 2b",
    "mov eax, offset level_4",
    "mov cr3, eax",
    // CR4: physical address extension; SSE and its exceptions.
    "mov eax, cr4",
    "or eax, 0x620",
    "mov cr4, eax",
    // EFER: long mode.
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    // CR0: paging, floating point that is not emulated.
    "mov eax, cr0",
    "and eax, 0xfffffffb",
    "or eax, 0x80000003",
    "mov cr0, eax",
    "lgdt [gdt_pointer]",
    "push 8",
    "mov eax, offset long_start",
    "push eax",
    "retf",
    ".code64",
    "long_start:",
    "mov eax, 16",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov edi, edi",
    "xor ebp, ebp",
    "call {start}",
    "ud2",
    ".popsection",
    stack_size = const 256 * 1024,
    start = sym crate::start,
);
