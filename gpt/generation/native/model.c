/* A few tokens through all layers of a GPT, on a processor, in one call.

   A token takes as long as reading the weights does, if nothing else takes any time: so between two
   matrices there is no kernel to launch and no shape to work out. gpt/model/ says what is computed,
   tests hold the two together, and gpt/generation/native/model.py calls this.

   Shape letters: N tokens, C n_embd, D head width, S keys, H heads. */

#include "products.h"

#define KEYS 64 /* that attention reads at a time */
#define WIDE 4  /* vectors of a value that registers hold */

enum { SWIGLU, GEGLU, GELU, GELU_TANH, RELU, RELU2 };  /* feed-forward layers */
enum { SEQUENTIAL, PARALLEL, PARALLEL_ONE_NORM };      /* what they read */

typedef struct {                /* weight: NULL for no norm; bias: or NULL */
    const float *weight, *bias;
} Norm;

typedef struct {
    Norm attention_norm, attention_post_norm, feedforward_norm, feedforward_post_norm;
    Norm q_norm, k_norm;
    Matrix qkv_proj, out_proj, up_proj, down_proj;
    int64_t window;             /* tokens that a token reads, itself included */
    int64_t rotation;           /* which of a batch's; -1: none */
} Layer;

typedef struct {                /* a vector each, of n_embd numbers; numbers: or NULL */
    const void *numbers;
    int64_t format;
} Table;

typedef struct {
    const Layer *layers;
    Norm final_norm;
    Table tokens;
    int64_t vocab_size, n_layer, n_embd, n_head, n_kv_head, head_dim, rope_dim, n_inner;
    int64_t mlp, residual, layernorm, across_heads;
    float token_scale, norm_eps, attention_scale, attention_softcap, residual_scale;
} Model;

typedef struct {                /* what is to be read, and what was */
    int64_t N;
    const int64_t *tokens, *rows, *positions;  /* (N,): rows: whose text each token goes on */
    void *const *keys, *const *values;  /* of each layer: (rows, n_kv_head, max_tokens, D) */
    int64_t cache_format, max_tokens;
    Table places;               /* vectors that are added to tokens' */
    const float *cosines[2], *sines[2];  /* of each rotation: (positions, rope_dim / 2) */
} Batch;

/* ----- What lies between two matrices */

static void embed(const Model *m, const Batch *batch, float *x) {
    const int64_t C = m->n_embd;
    const Table tokens = m->tokens, places = batch->places;
    IN_PARALLEL
    for (int64_t n = 0; n < batch->N; n++)
        for (int64_t c = 0; c < C; c++) {
            const float token = number(tokens.numbers, tokens.format, batch->tokens[n] * C + c);
            const int64_t place = batch->positions[n] * C + c;
            const float added = places.numbers ? number(places.numbers, places.format, place) : 0;
            x[n * C + c] = token * m->token_scale + added;
        }
}

static void normalise(const Norm *norm, int64_t layernorm, float eps, const float *x, int64_t width,
                      float *y) {
    double mean = 0, squares = 0;
    if (layernorm) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < width; i++) mean += x[i];
        mean /= width;
    }
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < width; i++) squares += (x[i] - mean) * (x[i] - mean);
    const float centre = (float)mean, scale = (float)(1 / sqrt(squares / width + eps));
    for (int64_t i = 0; i < width; i++)
        y[i] = (x[i] - centre) * scale * norm->weight[i] + (norm->bias ? norm->bias[i] : 0);
}

static void normalise_all(const Model *m, const Norm *norm, const float *x, int64_t N, float *y) {
    const int64_t C = m->n_embd;
    IN_PARALLEL
    for (int64_t n = 0; n < N; n++) {
        if (norm->weight) normalise(norm, m->layernorm, m->norm_eps, x + n * C, C, y + n * C);
        else for (int64_t c = 0; c < C; c++) y[n * C + c] = x[n * C + c];
    }
}

/* x += residual_scale · norm(matrix · read); made: (N, C) */
static void add_to_stream(const Model *m, const Matrix *matrix, const Norm *norm, const float *read,
                          int64_t N, float *space, float *made, float *x) {
    if (!norm->weight) {
        linear(matrix, read, N, space, (Outputs){x, 1, m->residual_scale});
        return;
    }
    linear(matrix, read, N, space, (Outputs){.y = made});
    normalise_all(m, norm, made, N, made);
    IN_PARALLEL
    for (int64_t i = 0; i < N * m->n_embd; i++) x[i] += m->residual_scale * made[i];
}

static void rotate(const Model *m, const Batch *batch, int64_t rotation, int64_t position,
                   float *head) {
    const int64_t half = m->rope_dim / 2;
    const float *cosines = batch->cosines[rotation] + position * half;
    const float *sines = batch->sines[rotation] + position * half;
    for (int64_t i = 0; i < half; i++) {
        const float a = head[i], b = head[half + i];
        head[i] = a * cosines[i] - b * sines[i];
        head[half + i] = b * cosines[i] + a * sines[i];
    }
}

/* Where a text's keys, or values, of one head begin in the cache. */
static int64_t place(const Model *m, const Batch *batch, int64_t n, int64_t kv_head) {
    return (batch->rows[n] * m->n_kv_head + kv_head) * batch->max_tokens * m->head_dim;
}

/* Queries as attention takes them; keys and values, where the cache keeps them. */
static void prepare_heads(const Model *m, const Batch *batch, int64_t layer, float *qkv) {
    const int64_t D = m->head_dim, queries = m->n_head, keys = queries + m->n_kv_head;
    const int64_t heads = keys + m->n_kv_head;
    const Layer *l = m->layers + layer;
    if (m->across_heads) {
        IN_PARALLEL
        for (int64_t n = 0; n < batch->N; n++) {
            float *q = qkv + n * heads * D, *k = q + queries * D;
            normalise(&l->q_norm, 0, m->norm_eps, q, queries * D, q);
            normalise(&l->k_norm, 0, m->norm_eps, k, m->n_kv_head * D, k);
        }
    }
    IN_PARALLEL
    for (int64_t task = 0; task < batch->N * heads; task++) {
        const int64_t n = task / heads, h = task % heads, position = batch->positions[n];
        float *head = qkv + task * D;
        const Norm *norm = h < queries ? &l->q_norm : &l->k_norm;
        if (h < keys && norm->weight && !m->across_heads)
            normalise(norm, 0, m->norm_eps, head, D, head);
        if (h < keys && l->rotation >= 0) rotate(m, batch, l->rotation, position, head);
        if (h < queries) continue;
        void *cache = h < keys ? batch->keys[layer] : batch->values[layer];
        const int64_t start = place(m, batch, n, h - (h < keys ? queries : keys)) + position * D;
        for (int64_t i = 0; i < D; i++) store(cache, batch->cache_format, start + i, head[i]);
    }
}

/* How much a query agrees with each of S keys. */
INLINE void agreements(const Model *m, int64_t format, const void *keys, const float *query,
                       int64_t S, float *y) {
    const int64_t D = m->head_dim;
    const float scale = m->attention_scale, cap = m->attention_softcap;
    const int64_t wide = format == FLOAT32 ? 4 : 2;
    float sum[ROWS][TOKENS];
    for (int64_t s = 0; s < S; s++) {
        products(format, (const char *)keys + s * D * wide, query, D, 1, 1, sum);
        y[s] = cap > 0 ? cap * tanhf(sum[0][0] * scale / cap) : sum[0][0] * scale;
    }
}

/* `mix` for W vectors of each value at a time, from place d on; returns where it had to end. */
INLINE int64_t mix_vectors(int64_t format, const void *values, const float *weights, int64_t S,
                           int64_t D, float faded, float *y, int64_t d, int W) {
    const Floats zeros = {0};
    for (; d + W * LANES <= D; d += W * LANES) {
        Floats lanes[WIDE];
        UNROLLED for (int i = 0; i < W; i++) lanes[i] = load(y, FLOAT32, d + i * LANES) * faded;
        for (int64_t s = 0; s < S; s++)
            UNROLLED for (int i = 0; i < W; i++) {
                const Floats value = load(values, format, s * D + d + i * LANES);
                lanes[i] = fused(value, weights[s] + zeros, lanes[i]);
            }
        UNROLLED for (int i = 0; i < W; i++) *(Floats *)(y + d + i * LANES) = lanes[i];
    }
    return d;
}

/* y = faded y + Σ weights[s] values[s], (S, D) */
INLINE void mix(int64_t format, const void *values, const float *weights, int64_t S, int64_t D,
                float faded, float *y) {
    int64_t d = mix_vectors(format, values, weights, S, D, faded, y, 0, WIDE);
    d = mix_vectors(format, values, weights, S, D, faded, y, d, 1);
    for (; d < D; d++) {
        y[d] *= faded;
        for (int64_t s = 0; s < S; s++) y[d] += number(values, format, s * D + d) * weights[s];
    }
}

/* One query over its keys, a few at a time. Source of the running softmax: arXiv:1805.02867. */
INLINE void attend(const Model *m, int64_t format, const void *keys, const void *values,
                   int64_t first, int64_t end, const float *query, float *y) {
    const int64_t D = m->head_dim;
    const int64_t wide = format == FLOAT32 ? 4 : 2;
    float largest = -INFINITY, sum = 0;
    for (int64_t d = 0; d < D; d++) y[d] = 0;
    for (int64_t start = first; start < end; start += KEYS) {
        const int64_t S = end - start < KEYS ? end - start : KEYS;
        float weights[KEYS], before = largest;
        agreements(m, format, (const char *)keys + start * D * wide, query, S, weights);
        for (int64_t s = 0; s < S; s++) largest = fmaxf(largest, weights[s]);
        const float faded = expf(before - largest);
        sum *= faded;
        for (int64_t s = 0; s < S; s++) sum += weights[s] = expf(weights[s] - largest);
        mix(format, (const char *)values + start * D * wide, weights, S, D, faded, y);
    }
    for (int64_t d = 0; d < D; d++) y[d] /= sum;
}

/* space: (N, n_head, D) */
static void attend_all(const Model *m, const Batch *batch, int64_t layer, const float *qkv,
                       float *space, float *y) {
    const int64_t D = m->head_dim, H = m->n_head, heads = H + 2 * m->n_kv_head;
    const int64_t format = batch->cache_format, wide = format == FLOAT32 ? 4 : 2;
    const int64_t window = m->layers[layer].window;
    IN_PARALLEL
    for (int64_t task = 0; task < batch->N * H; task++) {
        const int64_t n = task / H, h = task % H, end = batch->positions[n] + 1;
        const int64_t first = end > window ? end - window : 0;
        const int64_t text = place(m, batch, n, h / (H / m->n_kv_head)) * wide;
        const char *keys = (const char *)batch->keys[layer] + text;
        const char *values = (const char *)batch->values[layer] + text;
        const float *query = qkv + (n * heads + h) * D;
        if (format == FLOAT32) {
            attend(m, FLOAT32, keys, values, first, end, query, y + task * D);
        } else {
            sorted(query, D, space + task * D);
            attend(m, BFLOAT16, keys, values, first, end, space + task * D, y + task * D);
        }
    }
}

INLINE float gelu_tanh(float h) {  /* 1 + tanh(u) is 2 / (1 + exp(-2 u)) */
    const float u = (float)(M_SQRT1_2 * M_2_SQRTPI) * (h + 0.044715f * h * h * h);
    return h / (1 + expf(-2 * u));
}

static void activate(const Model *m, const float *h, int64_t N, float *y) {
    const int64_t I = m->n_inner, gated = m->mlp == SWIGLU || m->mlp == GEGLU;
    IN_PARALLEL
    for (int64_t i = 0; i < N * I; i++) {
        const float *gate = h + (gated ? i / I * 2 * I + i % I : i);
        if (m->mlp == SWIGLU) {
            y[i] = gate[0] / (1 + expf(-gate[0])) * gate[I];
        } else if (m->mlp == GEGLU) {
            y[i] = gelu_tanh(gate[0]) * gate[I];
        } else if (m->mlp == RELU) {
            y[i] = h[i] > 0 ? h[i] : h[i] * 0;
        } else if (m->mlp == RELU2) {
            y[i] = h[i] > 0 ? h[i] * h[i] : h[i] * 0;
        } else if (m->mlp == GELU) {
            y[i] = h[i] * 0.5f * (1 + erff(h[i] * (float)M_SQRT1_2));
        } else {
            y[i] = gelu_tanh(h[i]);
        }
    }
}

/* ----- What Python calls */

enum { DONE, NO_MEMORY, NO_SUCH_TOKEN };

/* x, (N, C): the residual stream after the last norm. */
int hidden(const Model *m, const Batch *batch, float *x) {
    const int64_t N = batch->N, C = m->n_embd, I = m->n_inner;
    for (int64_t n = 0; n < N; n++)
        if (batch->tokens[n] < 0 || batch->tokens[n] >= m->vocab_size) return NO_SUCH_TOKEN;
    const int64_t q_width = m->n_head * m->head_dim;
    const int64_t qkv_width = q_width + 2 * m->n_kv_head * m->head_dim;
    const int64_t widest = C > I ? (C > q_width ? C : q_width) : (I > q_width ? I : q_width);
    float *memory = malloc(N * (3 * C + qkv_width + q_width + 3 * I + widest + 1) * sizeof(float));
    if (!memory) return NO_MEMORY;
    float *normed = memory, *beside = normed + N * C, *made = beside + N * C, *qkv = made + N * C;
    float *heard = qkv + N * qkv_width, *up = heard + N * q_width, *inner = up + 2 * N * I;
    float *space = inner + N * I;
#pragma omp parallel
    {
        embed(m, batch, x);
        for (int64_t i = 0; i < m->n_layer; i++) {
            const Layer *layer = m->layers + i;
            normalise_all(m, &layer->attention_norm, x, N, normed);
            if (m->residual == PARALLEL) normalise_all(m, &layer->feedforward_norm, x, N, beside);
            linear(&layer->qkv_proj, normed, N, space, (Outputs){.y = qkv});
            prepare_heads(m, batch, i, qkv);
            attend_all(m, batch, i, qkv, space, heard);
            add_to_stream(m, &layer->out_proj, &layer->attention_post_norm, heard, N, space, made, x);
            if (m->residual == SEQUENTIAL)
                normalise_all(m, &layer->feedforward_norm, x, N, normed);
            linear(&layer->up_proj, m->residual == PARALLEL ? beside : normed, N, space,
                   (Outputs){.y = up});
            activate(m, up, N, inner);
            add_to_stream(m, &layer->down_proj, &layer->feedforward_post_norm, inner, N, space, made,
                          x);
        }
        normalise_all(m, &m->final_norm, x, N, x);
    }
    free(memory);
    return DONE;
}

/* y, (N, O) = x, (N, I), times a matrix. */
int product(const Matrix *m, const float *x, int64_t N, float *y) {
    float *space = malloc(N * (m->inputs + 1) * sizeof(float));
    if (!space) return NO_MEMORY;
#pragma omp parallel
    linear(m, x, N, space, (Outputs){.y = y});
    free(space);
    return DONE;
}
