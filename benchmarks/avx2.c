/* Hides AVX-512 from a program, so that onnxruntime computes as on a processor with AVX2 alone.
 *
 *     cc -O2 -shared -fPIC benchmarks/avx2.c -o avx2.so
 *     LD_PRELOAD=./avx2.so emdn-train variants DIR --precision int8
 *
 * Linux on x86-64 with CPUID faulting (cpuid_fault in /proc/cpuinfo). The instruction is made to
 * fault (arch_prctl(2), ARCH_SET_CPUID), and the handler answers with the processor's own words
 * but for the flags of AVX-512, AVX-VNNI and AMX (Intel SDM, volume 2A, CPUID, leaf 7). What has
 * asked before this is loaded, as libc, keeps its answer. Threads and forked children inherit it;
 * after exec the library is loaded anew.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define SET_CPUID 0x1012

/* Of leaf 7, sub-leaf 0: AVX-512 (F DQ IFMA PF ER CD BW VL; VBMI VBMI2 VNNI BITALG VPOPCNTDQ;
 * 4VNNIW 4FMAPS VP2INTERSECT FP16) and AMX (BF16 TILE INT8). */
static const unsigned hidden_b = 1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 |
                                 1u << 30 | 1u << 31;
static const unsigned hidden_c = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned hidden_d = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 |
                                 1u << 25;
/* Of sub-leaf 1: AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT,
 * AMX-COMPLEX, AVX-VNNI-INT16, AVX10. */
static const unsigned hidden_1a = 1u << 4 | 1u << 5 | 1u << 21 | 1u << 23;
static const unsigned hidden_1d = 1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19;

static struct sigaction before;

static void answer(int number, siginfo_t *info, void *context)
{
    greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *code = (const unsigned char *)at[REG_RIP];
    if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
        sigaction(number, &before, NULL); /* a fault of its own: it happens again, unhandled */
        return;
    }
    unsigned leaf = at[REG_RAX], sub = at[REG_RCX], a, b, c, d;
    syscall(SYS_arch_prctl, SET_CPUID, 1);
    __cpuid_count(leaf, sub, a, b, c, d);
    syscall(SYS_arch_prctl, SET_CPUID, 0);
    if (leaf == 7 && sub == 0) {
        b &= ~hidden_b;
        c &= ~hidden_c;
        d &= ~hidden_d;
    } else if (leaf == 7 && sub == 1) {
        a &= ~hidden_1a;
        d &= ~hidden_1d;
    }
    at[REG_RAX] = a;
    at[REG_RBX] = b;
    at[REG_RCX] = c;
    at[REG_RDX] = d;
    at[REG_RIP] += 2;
}

__attribute__((constructor)) static void hide(void)
{
    struct sigaction mine = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &mine, &before);
    if (syscall(SYS_arch_prctl, SET_CPUID, 0) != 0) {
        perror("avx2: the processor or the kernel cannot make CPUID fault");
        exit(1);
    }
}
