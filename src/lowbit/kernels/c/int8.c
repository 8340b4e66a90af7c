/* y = x W^T + b with x rounded to 8 bits per token and W in int8, for x86, and what stands around it in an encoder.

   Layout of W: panels of 16 rows; in a panel, 4 consecutive inputs of row 0, of row 1, ... of row 15, then the next 4
   inputs; rows are padded to 16 and inputs to 64, with zeros. How products are formed is a matter of the instructions
   that the file is compiled for; each header of them says how many tokens (ROWS) and panels (PANELS) it takes at once. */
#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Rows of a panel; inputs they are padded to; tokens that a thread takes at a time; from how many tokens on it does. */
enum { COLS = 16, GROUP = 64, CHUNK = 128, MANY = 300 };

typedef struct {
    long out, in, limit; /* no code exceeds limit */
    const int8_t *codes;
    const float *scale, *bias; /* [out padded to COLS] */
    const int32_t *sums;       /* sum of the codes of a row, [out padded to COLS] */
    const int32_t *rest_ptr, *rest_row, *rest_col;
    const float *rest_value;
    long activation; /* 0 none, 1 gelu, 2 relu */
} Weight;

/* Rows of float32, or of bfloat16 where `half`, that lie `stride` elements apart. */
typedef struct {
    void *data;
    long stride;
    int half;
} Rows;

/* Tokens rounded to 8 bits: `codes` has room for tokens padded to ROWS, each padded to GROUP inputs. */
typedef struct {
    uint8_t *codes;
    float *steps, *zeros;
} Rounded;

/* Lines of 64 bytes of W that are needed next. */
typedef struct {
    const int8_t *from;
    long lines;
} Ahead;

static inline long padded(long in) { return (in + GROUP - 1) / GROUP * GROUP; }

static inline void *at(Rows rows, long row, long column)
{
    return (char *)rows.data + (row * rows.stride + column) * (rows.half ? 2 : 4);
}

static inline Rows rows_from(Rows rows, long first) { return (Rows){at(rows, first, 0), rows.stride, rows.half}; }

static inline float value(const void *x, long i, int half)
{
    float v;
    if (!half) return ((const float *)x)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
    memcpy(&v, &bits, 4);
    return v;
}

/* What the codes of `cols` rows of W from `first` on cannot express: entries of W times the inputs themselves. */
static inline void add_rest(const Weight *w, long first, long cols, const void *x, int half, float *y)
{
    for (int32_t i = w->rest_ptr[first]; i < w->rest_ptr[first + cols]; i++)
        y[w->rest_row[i] - first] += value(x, w->rest_col[i], half) * w->rest_value[i];
}

#ifdef __AVX512VNNI__
#include "avx512.h"
#else
#include "generic.h"
#endif
#if defined __AMX_INT8__
#include "amx.h"
#elif defined __AVX512VNNI__
#include "vnni.h"
#else
#include "avx2.h"
#endif

/* Share of one of `parts` threads in `all` equal pieces of work. */
typedef struct {
    long first, last;
} Share;

static inline Share share(long all, long part, long parts)
{
    return (Share){all * part / parts, all * (part + 1) / parts};
}

/* The functions below do the share of one thread; what they need of others must be done. */

static void round_rows(Rows x, long tokens, long in, Rounded to, long part, long parts)
{
    Share own = share(tokens, part, parts);
    for (long t = own.first; t < own.last; t++)
        round_row(at(x, t, 0), x.half, in, padded(in), to.codes + t * padded(in), to.steps + t, to.zeros + t);
}

/* The outputs of `rows` tokens from t0 on that `panels` panels from p on give. */
static inline void block(const Weight *w, Rows x, Rounded q, long t0, long rows, long p, long panels, Ahead ahead,
                         Rows out)
{
    _Alignas(64) int32_t acc[ROWS * PANELS * COLS];
    long stride = padded(w->in);
    tile(q.codes + t0 * stride, stride, w->codes + p * COLS * stride, stride / 4, rows, panels, w->limit, ahead, acc);
    long first = p * COLS, cols = w->out - first < panels * COLS ? w->out - first : panels * COLS;
    finish(w, first, cols, rows_from(x, t0), q.steps + t0, q.zeros + t0, rows, acc, rows_from(out, t0));
}

/* Threads share the panels, so that each weight is read once. */
static void multiply(const Weight *w, Rows x, Rounded q, long tokens, Rows out, long part, long parts)
{
    long panels = (w->out + COLS - 1) / COLS, groups = (panels + PANELS - 1) / PANELS, blocks = (tokens + ROWS - 1) / ROWS;
    long bytes = PANELS * COLS * padded(w->in);
    Share own = share(groups, part, parts);
    for (long g = own.first; g < own.last; g++)
        for (long b = 0; b < blocks; b++) {
            long p = g * PANELS, left = panels - p, rows = tokens - b * ROWS;
            Share lines = share(bytes / 64, b, blocks);
            Ahead ahead = {w->codes + (g + 1) * bytes + 64 * lines.first, g + 1 < own.last ? lines.last - lines.first : 0};
            block(w, x, q, b * ROWS, rows < ROWS ? rows : ROWS, p, left < PANELS ? left : PANELS, ahead, out);
        }
}

/* Room for the rounded tokens from `first` on. */
static inline Rounded rounded_from(Rounded all, long first, long in)
{
    return (Rounded){all.codes + first * padded(in), all.steps + first, all.zeros + first};
}

/* How many tokens a thread takes at a time through all parts of a layer; 0 where all threads share each part. */
static long chunk_of(long tokens, int threads)
{
    long each = (tokens + threads - 1) / threads, chunk = (each + ROWS - 1) / ROWS * ROWS;
    return tokens < MANY ? 0 : chunk < CHUNK ? chunk : CHUNK;
}

/* `q`, `steps` and `zeros` are room for the rounded tokens. */
void lowbit_linear(const Weight *w, float *x, long tokens, uint8_t *q, float *steps, float *zeros, float *out,
                   int threads)
{
    Rows inputs = {x, w->in, 0}, outputs = {out, w->out, 0};
    Rounded rounded = {q, steps, zeros};
    long chunk = chunk_of(tokens, threads);
#pragma omp parallel num_threads(threads)
    {
        begin();
        if (!chunk) {
            long part = omp_get_thread_num(), parts = omp_get_num_threads();
            round_rows(inputs, tokens, w->in, rounded, part, parts);
#pragma omp barrier
            multiply(w, inputs, rounded, tokens, outputs, part, parts);
        } else {
#pragma omp for schedule(dynamic)
            for (long t = 0; t < tokens; t += chunk) {
                long n = tokens - t < chunk ? tokens - t : chunk;
                Rounded own = rounded_from(rounded, t, w->in);
                round_rows(rows_from(inputs, t), n, w->in, own, 0, 1);
                multiply(w, rows_from(inputs, t), own, n, rows_from(outputs, t), 0, 1);
            }
        }
        end();
    }
}

#include "layer.h"
