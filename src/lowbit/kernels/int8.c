/* y = x W^T + b with x rounded to 8 bits per token and W in int8, for x86 with AVX2.

   vpmaddubsw adds two products u8 * s8 in 16 bits and saturates. Codes of at most 64 cannot reach that:
   255 * 64 * 2 < 2^15. Codes of at most 32 leave room for the sum of two such results, codes of at most 16 for that of
   four, which saves a quarter and three eighths of the multiplications. Layout of W: panels of 16 rows; in a panel, 4 consecutive inputs of row 0, of row 1, ... of row 15,
   then the next 4 inputs; rows and inputs are padded to 16 with zeros. */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 4, COLS = 16, CHUNK = 128, PANELS = 4, LANES = 8 };

typedef struct {
    long out, in;
    const float *scale, *bias; /* [out padded to COLS] */
    const int32_t *sums;       /* sum of the codes of a row, [out padded to COLS] */
    const int32_t *rest_ptr, *rest_col;
    const float *rest_value;
    int activation; /* 0 none, 1 gelu, 2 relu */
} Weight;

/* One token on 256 levels between its smallest and its largest value, 0 among them. A NaN or infinity makes its step
   NaN, and so the whole output row. */
static void round_row(const float *x, long k, long padded, uint8_t *q, float *step, float *zero)
{
    float low = 0, high = 0, lows[LANES] = {0}, highs[LANES] = {0};
    int32_t bad = 0, bits;
    long whole = k / LANES * LANES;
    for (long i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++) {
            lows[j] = x[i + j] < lows[j] ? x[i + j] : lows[j];
            highs[j] = x[i + j] > highs[j] ? x[i + j] : highs[j];
        }
    for (int j = 0; j < LANES + k - whole; j++) {
        float small = j < LANES ? lows[j] : x[whole + j - LANES], large = j < LANES ? highs[j] : small;
        low = small < low ? small : low;
        high = large > high ? large : high;
    }
    for (long i = 0; i < k; i++) {
        memcpy(&bits, x + i, 4);
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    float s = (high - low) / 255, inverse = s > 0 ? 1 / s : 0, z = rintf(-low * inverse);
    for (long i = 0; i < k; i++) {
        float v = rintf(x[i] * inverse) + z;
        v = v < 0 ? 0 : v;
        v = v > 255 ? 255 : v;
        q[i] = (uint8_t)(int)v;
    }
    memset(q + k, 0, padded - k);
    *step = bad ? NAN : s;
    *zero = z;
}

/* x Phi(x); erf by Abramowitz and Stegun 7.1.26 (error below 2e-7), exp by splitting off the power of two. */
static inline float gelu(float v)
{
    float z = fabsf(v) * 0.70710678f, t = 1 / (1 + 0.3275911f * z);
    float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float y = -z * z * 1.44269504f;
    y = y > -126 ? y : -126;
    float whole = rintf(y), f = y - whole, power;
    float e = 1 + f * (0.69314718f + f * (0.24022651f + f * (0.05550411f + f * (0.00961813f + f * 0.00133336f))));
    int32_t bits = ((int32_t)whole + 127) << 23;
    memcpy(&power, &bits, 4);
    float tail = 0.5f * p * e * power;
    return v * (v > 0 ? 1 - tail : tail);
}

/* From the 16 products of a token with a panel to its outputs y. */
static inline void finish(const Weight *w, long panel, const float *x, float step, float zero, const float *products,
                          float *y)
{
    const float *scale = w->scale + panel * COLS, *bias = w->bias + panel * COLS;
    const int32_t *sums = w->sums + panel * COLS;
    for (int j = 0; j < COLS; j++) y[j] = (products[j] - zero * sums[j]) * (step * scale[j]) + bias[j];
    long first = panel * COLS, last = first + COLS < w->out ? first + COLS : w->out;
    if (w->rest_ptr[last] > w->rest_ptr[first])
        for (long row = first; row < last; row++)
            for (int32_t i = w->rest_ptr[row]; i < w->rest_ptr[row + 1]; i++)
                y[row - first] += x[w->rest_col[i]] * w->rest_value[i];
    if (w->activation == 1)
        for (int j = 0; j < COLS; j++) y[j] = gelu(y[j]);
    if (w->activation == 2)
        for (int j = 0; j < COLS; j++) y[j] = y[j] < 0 ? 0 : y[j];
}

/* Products of 4 tokens with a panel, over `groups` groups of 4 inputs, a multiple of 4. */
static inline void tile(const uint8_t *q, long stride, const int8_t *w, long groups, int depth, int32_t *out)
{
    __m256i acc[ROWS][2];
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < ROWS; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#define A(r, i) _mm256_set1_epi32(*(const int32_t *)(q + (r) * stride + 4 * (i)))
#define B(i, j) _mm256_loadu_si256((const __m256i *)(w + 64 * (i) + 32 * (j)))
#define P(r, i) _mm256_maddubs_epi16(A(r, i), b[(i) % 4])
    for (long i = 0; i < groups; i += 4, q += 16, w += 256)
        for (int j = 0; j < 2; j++) {
            __asm__("" : "+r"(q)); /* or the compiler keeps broadcasts in registers and spills the sums */
            __m256i b[4] = {B(0, j), B(1, j), B(2, j), B(3, j)};
            for (int r = 0; r < ROWS; r++) {
                __m256i sum;
                if (depth == 4) {
                    sum = _mm256_add_epi16(_mm256_add_epi16(P(r, 0), P(r, 1)), _mm256_add_epi16(P(r, 2), P(r, 3)));
                    sum = _mm256_madd_epi16(sum, ones);
                } else if (depth == 2) {
                    sum = _mm256_add_epi32(_mm256_madd_epi16(_mm256_add_epi16(P(r, 0), P(r, 1)), ones),
                                           _mm256_madd_epi16(_mm256_add_epi16(P(r, 2), P(r, 3)), ones));
                } else {
                    sum = _mm256_add_epi32(
                        _mm256_add_epi32(_mm256_madd_epi16(P(r, 0), ones), _mm256_madd_epi16(P(r, 1), ones)),
                        _mm256_add_epi32(_mm256_madd_epi16(P(r, 2), ones), _mm256_madd_epi16(P(r, 3), ones)));
                }
                acc[r][j] = _mm256_add_epi32(acc[r][j], sum);
            }
        }
    for (int r = 0; r < ROWS; r++)
        for (int j = 0; j < 2; j++) _mm256_storeu_si256((__m256i *)(out + r * COLS + 8 * j), acc[r][j]);
}

/* `depth` 4 where no code exceeds 16, 2 where none exceeds 32, else 1. `q` has room for tokens padded to ROWS, each padded to 16 inputs. */
void lowbit_linear(const float *x, long tokens, const int8_t *codes, const Weight *w, int depth, uint8_t *q,
                   float *steps, float *zeros, float *out, int threads)
{
    long k = w->in, padded = (k + 15) / 16 * 16, panels = (w->out + COLS - 1) / COLS;
    long chunks = (tokens + CHUNK - 1) / CHUNK, blocks = (panels + PANELS - 1) / PANELS;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long t = 0; t < tokens; t++) round_row(x + t * k, k, padded, q + t * padded, steps + t, zeros + t);
#pragma omp for schedule(dynamic) collapse(2)
        for (long c = 0; c < chunks; c++)
            for (long b = 0; b < blocks; b++) {
                long end = (c + 1) * CHUNK < tokens ? (c + 1) * CHUNK : tokens;
                for (long p = b * PANELS; p < (b + 1) * PANELS && p < panels; p++)
                    for (long t0 = c * CHUNK; t0 < end; t0 += ROWS) {
                        int32_t acc[ROWS * COLS];
                        float products[COLS], y[COLS];
                        const int8_t *panel = codes + p * COLS * padded;
                        if (depth == 4) tile(q + t0 * padded, padded, panel, padded / 4, 4, acc);
                        else if (depth == 2) tile(q + t0 * padded, padded, panel, padded / 4, 2, acc);
                        else tile(q + t0 * padded, padded, panel, padded / 4, 1, acc);
                        long cols = w->out - p * COLS < COLS ? w->out - p * COLS : COLS;
                        for (long t = t0; t < t0 + ROWS && t < end; t++) {
                            for (int j = 0; j < COLS; j++) products[j] = (float)acc[(t - t0) * COLS + j];
                            finish(w, p, x + t * k, steps[t], zeros[t], products, y);
                            memcpy(out + t * w->out + p * COLS, y, cols * sizeof(float));
                        }
                    }
            }
    }
}
