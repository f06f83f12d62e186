/* A matrix times the vectors of a few tokens: each weight is read once, by one of all cores.

   Weights are float32, bfloat16, or int8 with a scale for each row; vectors and sums float32, or
   exact integers. Each sum has one order, so a token's does not depend on who shares its call.

   Shape letters: N tokens, I inputs and O outputs of a matrix. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16 /* numbers that the processor computes with at once */
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define LINE 64    /* bytes that memory gives at once */
#define AHEAD 4096 /* bytes: weights are asked for so long before they are needed */
#define SPAN 512   /* int32 holds the sum of this many products of an int8 and an int16 */
#define ROWS 2     /* of a matrix, and */
#define TOKENS 4   /* inputs, that registers hold the sums of */

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 4")
/* All threads call every function that has such a loop, and wait for each other at its end. */
#define IN_PARALLEL _Pragma("omp for schedule(static)")

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));

enum { FLOAT32, BFLOAT16, INT8 };         /* number formats */

typedef struct {                /* (O, I) */
    const void *weight;
    const float *scale, *bias;  /* (O,); scale: of int8 rows; bias: or NULL */
    int64_t format, outputs, inputs;
} Matrix;

/* ----- Numbers */

INLINE Floats load(const void *numbers, int64_t format, int64_t i) {
    if (format == FLOAT32) return *(const Floats *)((const float *)numbers + i);
    const Halves halves = *(const Halves *)((const uint16_t *)numbers + i);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
}

static float number(const void *numbers, int64_t format, int64_t i) {
    if (format == FLOAT32) return ((const float *)numbers)[i];
    const uint32_t bits = (uint32_t)((const uint16_t *)numbers)[i] << 16;
    return ((union { uint32_t bits; float value; }){bits}).value;
}

static void store(void *numbers, int64_t format, int64_t i, float value) {
    if (format == FLOAT32) {
        ((float *)numbers)[i] = value;
        return;
    }
    const uint32_t bits = ((union { float value; uint32_t bits; }){value}).bits;
    const uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1);  /* and of two, the even one */
    ((uint16_t *)numbers)[i] = isnan(value) ? 0x7fc0 : nearest >> 16;
}

/* a b + c. The compiler may not make such of its own accord: it might for one token and not for
   several, and they are not rounded alike. */
INLINE Floats fused(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE float total(Floats lanes) {
    Words places;
    for (int l = 0; l < LANES; l++) places[l] = l;
    UNROLLED for (int step = LANES / 2; step; step /= 2)
        lanes += __builtin_shuffle(lanes, places ^ step);
    return lanes[0];
}

/* ----- Products: sums[r][t] = Σ w[r][i] x[t][i], for few rows and few tokens, both constant */

INLINE void float32_products(const float *w, const float *x, int64_t I, int R, int T,
                             float sums[ROWS][TOKENS]) {
    Floats lanes[ROWS][TOKENS] = {0}, inputs[TOKENS];
    int64_t i = 0;
    for (; i + LANES <= I; i += LANES) {
        UNROLLED for (int t = 0; t < T; t++) inputs[t] = load(x + t * I, FLOAT32, i);
        UNROLLED for (int r = 0; r < R; r++) {
            if (i % (LINE / 4) == 0) __builtin_prefetch((const char *)(w + r * I + i) + AHEAD);
            const Floats weights = load(w + r * I, FLOAT32, i);
            UNROLLED for (int t = 0; t < T; t++)
                lanes[r][t] = fused(weights, inputs[t], lanes[r][t]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) {
            sums[r][t] = total(lanes[r][t]);
            for (int64_t j = i; j < I; j++) sums[r][t] += w[r * I + j] * x[t * I + j];
        }
}

/* A word holds two weights, and a bfloat16 is the upper half of a float32: a shift gives one, a
   mask the other. x has been sorted accordingly (`sorted`). */
INLINE void bfloat16_products(const uint16_t *w, const float *x, int64_t I, int R, int T,
                              float sums[ROWS][TOKENS]) {
    Floats lanes[ROWS][TOKENS] = {0}, evens[TOKENS], odds[TOKENS];
    int64_t i = 0;
    for (; i + 2 * LANES <= I; i += 2 * LANES) {
        UNROLLED for (int t = 0; t < T; t++) {
            evens[t] = load(x + t * I, FLOAT32, i);
            odds[t] = load(x + t * I, FLOAT32, i + LANES);
        }
        UNROLLED for (int r = 0; r < R; r++) {
            if (i % (LINE / 2) == 0) __builtin_prefetch((const char *)(w + r * I + i) + AHEAD);
            const Words both = *(const Words *)(w + r * I + i);
            UNROLLED for (int t = 0; t < T; t++) {
                lanes[r][t] = fused((Floats)(both << 16), evens[t], lanes[r][t]);
                lanes[r][t] = fused((Floats)(both & 0xffff0000u), odds[t], lanes[r][t]);
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) {
            sums[r][t] = total(lanes[r][t]);
            for (int64_t j = i; j < I; j++)
                sums[r][t] += number(w, BFLOAT16, r * I + j) * x[t * I + j];
        }
}

/* Exact: integers have no rounding. The compiler makes vectors of it. */
INLINE void int8_products(const int8_t *w, const int16_t *x, int64_t I, int R, int T,
                          float sums[ROWS][TOKENS]) {
    int64_t all[ROWS][TOKENS] = {0};
    for (int64_t start = 0; start < I; start += SPAN) {
        const int64_t end = start + SPAN < I ? start + SPAN : I;
        int32_t span[ROWS][TOKENS] = {0};
        for (int r = 0; r < R; r++)
            for (int64_t i = start; i < end; i += LINE) __builtin_prefetch(w + r * I + i + AHEAD);
        for (int64_t i = start; i < end; i++)
            UNROLLED for (int r = 0; r < R; r++)
                UNROLLED for (int t = 0; t < T; t++)
                    span[r][t] += (int16_t)w[r * I + i] * x[t * I + i];
        for (int r = 0; r < R; r++)
            for (int t = 0; t < T; t++) all[r][t] += span[r][t];
    }
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) sums[r][t] = (float)all[r][t];
}

INLINE void products(int64_t format, const void *w, const void *x, int64_t I, int R, int T,
                     float sums[ROWS][TOKENS]) {
    if (format == FLOAT32) float32_products(w, x, I, R, T, sums);
    else if (format == BFLOAT16) bfloat16_products(w, x, I, R, T, sums);
    else int8_products(w, x, I, R, T, sums);
}

/* ----- A linear layer */

/* Numbers at even places, then those at odd ones, within each 2 LANES; what is left over stays. */
static void sorted(const float *x, int64_t I, float *y) {
    int64_t i = 0;
    for (; i + 2 * LANES <= I; i += 2 * LANES)
        for (int l = 0; l < LANES; l++) {
            y[i + l] = x[i + 2 * l];
            y[i + LANES + l] = x[i + 2 * l + 1];
        }
    for (; i < I; i++) y[i] = x[i];
}

/* Numbers as int16, 32,767 for the largest; returns what 1 stands for. Not a number stays so. */
static float rounded(const float *x, int64_t I, int16_t *y) {
    float largest = 0, any = 0;
#pragma omp simd reduction(max : largest) reduction(+ : any)
    for (int64_t i = 0; i < I; i++) {
        largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        any += x[i] * 0;
    }
    const float scale = largest > 1e-30f ? 32767 / largest : 0;  /* what is less counts as zero */
#pragma omp simd
    for (int64_t i = 0; i < I; i++) {
        const float scaled = rintf(x[i] * scale);
        y[i] = fabsf(scaled) < 32768 ? (int16_t)scaled : 0;
    }
    return largest / 32767 + any;
}

typedef struct {
    const void *numbers;  /* (N, I) as the products of a format take them */
    const float *scales;  /* (N,), of int16 numbers */
} Inputs;

/* space: (N, I + 1) */
static Inputs inputs_of(const Matrix *m, const float *x, int64_t N, float *space) {
    const int64_t I = m->inputs;
    if (m->format == FLOAT32) return (Inputs){.numbers = x};
    float *scales = space + N * I;
    IN_PARALLEL
    for (int64_t n = 0; n < N; n++) {
        if (m->format == BFLOAT16) sorted(x + n * I, I, space + n * I);
        else scales[n] = rounded(x + n * I, I, (int16_t *)space + n * I);
    }
    return (Inputs){space, scales};
}

typedef struct {
    float *y;       /* (N, O) */
    int add;        /* to y, rather than replace it: */
    float factor;   /* times this */
} Outputs;

/* R rows of a matrix, from row o on, times T inputs from n on. */
INLINE void block(const Matrix *m, int64_t format, Inputs x, int64_t o, int64_t n, int R, int T,
                  Outputs out) {
    const int64_t I = m->inputs, O = m->outputs;
    const int64_t wide = format == FLOAT32 ? 4 : format == BFLOAT16 ? 2 : 1;
    const int64_t each = format == INT8 ? 2 : 4;
    float sums[ROWS][TOKENS];
    products(format, (const char *)m->weight + o * I * wide,
             (const char *)x.numbers + n * I * each, I, R, T, sums);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++) {
            float *y = out.y + (n + t) * O + o + r;
            float sum = sums[r][t];
            if (format == INT8) sum *= m->scale[o + r] * x.scales[n + t];
            if (m->bias) sum += m->bias[o + r];
            *y = out.add ? *y + out.factor * sum : sum;
        }
}

/* A single token reads row after row, as memory likes best. */
INLINE void all_blocks(const Matrix *m, int64_t format, Inputs x, int64_t N, Outputs out) {
    IN_PARALLEL
    for (int64_t o = 0; o < m->outputs; o += ROWS) {
        const int64_t end = o + ROWS < m->outputs ? o + ROWS : m->outputs;
        int64_t n = 0;
        for (; o + ROWS == end && n + TOKENS <= N; n += TOKENS)
            block(m, format, x, o, n, ROWS, TOKENS, out);
        for (; n < N; n++)
            for (int64_t r = o; r < end; r++) block(m, format, x, r, n, 1, 1, out);
    }
}

static void linear(const Matrix *m, const float *x, int64_t N, float *space, Outputs out) {
    const Inputs inputs = inputs_of(m, x, N, space);
    if (m->format == FLOAT32) all_blocks(m, FLOAT32, inputs, N, out);
    else if (m->format == BFLOAT16) all_blocks(m, BFLOAT16, inputs, N, out);
    else all_blocks(m, INT8, inputs, N, out);
}
