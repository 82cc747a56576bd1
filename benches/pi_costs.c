// Executes one matmul of 16 rows once, for benches/pi_costs.py to count what it
// executes: `KERNEL` is llama.cpp's function, or the raw code that omexc puts
// into a plan. Weights and activations are zeros: no kernel branches on them.

#include <stddef.h>
#include <stdint.h>

enum { ROWS = 16, BYTES = 1 << 20 };

static uint8_t weights[BYTES] __attribute__((aligned(64)));
static uint8_t activations[BYTES] __attribute__((aligned(64)));
static float out[BYTES] __attribute__((aligned(64)));

#if defined(OMEX)

// kernels/src/abi.rs
struct matmul_args {
    const uint8_t *weights, *activations;
    float *out;
    const float *bias, *residual;
    uint64_t panels, columns;
};
extern void kernel(const struct matmul_args *);
__asm__(".text\n.balign 64\n.global kernel\n.type kernel, %function\nkernel:\n"
        ".incbin \"" OMEX "\"\n.size kernel, . - kernel\n");

int main(void) {
    struct matmul_args args = {weights, activations, out, NULL, NULL, 1, COLUMNS};
    kernel(&args);
}

#elif defined(INTERLEAVED)

extern void KERNEL(int n, float *s, size_t bs, const void *vx, const void *vy, int nr, int nc);

int main(void) { KERNEL(K, out, ROWS, weights, activations, COLUMNS, ROWS); }

#else

extern void KERNEL(int n, float *s, size_t bs, const void *vx, size_t bx, const void *vy, size_t by, int nrc);

int main(void) {
    for (int i = 0; i < ROWS * COLUMNS; i++)
        KERNEL(K, out + i, 0, weights, 0, activations, 0, 1);
}

#endif
