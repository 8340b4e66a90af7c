/* The parts around the products, with AVX512. */

static inline __mmask16 first_lanes(long n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1 << n) - 1); }

enum { HALF = 1, PANELS = 2 };

static inline __m512 load16(const void *x, long i, int half, __mmask16 mask)
{
    if (!half) return _mm512_maskz_loadu_ps(mask, (const float *)x + i);
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + i));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

static inline __m256i to_bf16(__m512 v)
{
#ifdef __AVX512BF16__
    return (__m256i)_mm512_cvtneps_pbh(v);
#else
    __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
#endif
}

static inline void store16(void *y, int half, __mmask16 mask, __m512 v)
{
    if (half) _mm256_mask_storeu_epi16(y, mask, to_bf16(v));
    else _mm512_mask_storeu_ps(y, mask, v);
}

/* One token on 256 levels between its smallest and its largest value, 0 among them. A NaN or infinity makes its step
   NaN, and so the whole output row. */
static inline void round_row(const void *x, int half, long k, long padded, uint8_t *q, float *step,
                             float *zero)
{
    __m512 low[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, high[2] = {low[0], low[0]};
    __mmask16 bad = 0;
    for (long i = 0; i < k; i += 32)
        for (int j = 0; j < 2; j++) {
            __m512 v = load16(x, i + 16 * j, half, first_lanes(k - i - 16 * j));
            low[j] = _mm512_min_ps(low[j], v);
            high[j] = _mm512_max_ps(high[j], v);
            bad |= _mm512_fpclass_ps_mask(v, 0x99); /* NaNs and infinities */
        }
    float smallest = _mm512_reduce_min_ps(_mm512_min_ps(low[0], low[1]));
    float largest = _mm512_reduce_max_ps(_mm512_max_ps(high[0], high[1]));
    float s = (largest - smallest) / 255, inverse = s > 0 ? 1 / s : 0, z = rintf(-smallest * inverse);
    const __m512 factor = _mm512_set1_ps(inverse);
    const __m512i shift = _mm512_set1_epi32((int)z);
    for (long i = 0; i < padded; i += 16) {
        __mmask16 mask = first_lanes(k - i);
        __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(load16(x, i, half, mask), factor));
        code = _mm512_maskz_max_epi32(mask, _mm512_add_epi32(code, shift), _mm512_setzero_si512());
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtusepi32_epi8(code));
    }
    *step = bad ? NAN : s;
    *zero = z;
}

/* x Phi(x); erf by Abramowitz and Stegun 7.1.26 (error below 2e-7). */
static inline __m512 gelu16(__m512 v)
{
#define F(c) _mm512_set1_ps(c)
    const __m512 one = F(1);
    __m512 z = _mm512_mul_ps(_mm512_abs_ps(v), F(0.70710678f));
    __m512 d = _mm512_fmadd_ps(z, F(0.3275911f), one), t = _mm512_rcp14_ps(d);
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(d, t, F(2)));
    __m512 p = _mm512_fmadd_ps(t, F(1.061405429f), F(-1.453152027f));
    p = _mm512_fmadd_ps(t, p, F(1.421413741f));
    p = _mm512_fmadd_ps(t, p, F(-0.284496736f));
    p = _mm512_mul_ps(t, _mm512_fmadd_ps(t, p, F(0.254829592f)));
    __m512 y = _mm512_max_ps(_mm512_mul_ps(_mm512_mul_ps(z, z), F(-1.44269504f)), F(-126));
    __m512 whole = _mm512_roundscale_ps(y, 8), f = _mm512_sub_ps(y, whole);
    __m512 e = _mm512_fmadd_ps(f, F(0.00133336f), F(0.00961813f));
    e = _mm512_fmadd_ps(f, e, F(0.05550411f));
    e = _mm512_fmadd_ps(f, e, F(0.24022651f));
    e = _mm512_fmadd_ps(f, e, F(0.69314718f));
    e = _mm512_scalef_ps(_mm512_fmadd_ps(f, e, one), whole);
    __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, e), F(0.5f));
    __mmask16 positive = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(v, _mm512_mask_sub_ps(tail, positive, one, tail));
#undef F
}

static inline __m512 activate(__m512 v, long activation)
{
    if (activation == 1) return gelu16(v);
    return activation == 2 ? _mm512_max_ps(_mm512_setzero_ps(), v) : v; /* the second operand where one is NaN */
}

/* From the products of a block of tokens to its outputs; what is constant here is known when it is compiled. */
static inline __attribute__((always_inline)) void finish_rows(const Weight *w, long first, long cols, Rows x,
                                                              const float *steps, const float *zeros, long rows,
                                                              const int32_t *acc, Rows out, const long activation,
                                                              const int rest, const int half)
{
    const __mmask16 mask[2] = {first_lanes(cols), first_lanes(cols - COLS)};
    __m512 sums[2], scale[2], bias[2];
    for (int i = 0; i < 2; i++) {
        sums[i] = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask[i], w->sums + first + i * COLS));
        scale[i] = _mm512_maskz_loadu_ps(mask[i], w->scale + first + i * COLS);
        bias[i] = _mm512_maskz_loadu_ps(mask[i], w->bias + first + i * COLS);
    }
    for (long r = 0; r < rows; r++) {
        const __m512 step = _mm512_set1_ps(steps[r]), zero = _mm512_set1_ps(zeros[r]);
        __m512 v[2];
        for (int i = 0; i < 2; i++) {
            v[i] = _mm512_cvtepi32_ps(_mm512_loadu_si512(acc + (r * PANELS + i) * COLS));
            v[i] = _mm512_fmadd_ps(_mm512_fnmadd_ps(zero, sums[i], v[i]), _mm512_mul_ps(step, scale[i]), bias[i]);
        }
        if (rest) {
            float values[2 * COLS];
            for (int i = 0; i < 2; i++) _mm512_storeu_ps(values + i * COLS, v[i]);
            add_rest(w, first, cols, at(x, r, 0), x.half, values);
            for (int i = 0; i < 2; i++) v[i] = _mm512_loadu_ps(values + i * COLS);
        }
        for (int i = 0; i < 2; i++) v[i] = activate(v[i], activation);
        for (int i = 0; i < 2; i++) store16(at(out, r, first + i * COLS), half, mask[i], v[i]);
    }
}

static void finish(const Weight *w, long first, long cols, Rows x, const float *steps, const float *zeros, long rows,
                   const int32_t *acc, Rows out)
{
#define CASE(activation, rest, half) finish_rows(w, first, cols, x, steps, zeros, rows, acc, out, activation, rest, half)
    if (w->rest_ptr[first + cols] > w->rest_ptr[first]) CASE(w->activation, 1, out.half);
    else if (w->activation == 1 && out.half) CASE(1, 0, 1);
    else if (w->activation == 1) CASE(1, 0, 0);
    else if (w->activation == 0 && out.half) CASE(0, 0, 1);
    else if (w->activation == 0) CASE(0, 0, 0);
    else CASE(w->activation, 0, out.half);
#undef CASE
}

/* LayerNorm(x + residual). */
static inline void add_norm_row(const float *x, const float *residual, long n, const float *weight, const float *bias,
                                float epsilon, float *y)
{
    __m512 sum = _mm512_setzero_ps(), squares = sum;
    for (long i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 v = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, x + i), _mm512_maskz_loadu_ps(mask, residual + i));
        _mm512_mask_storeu_ps(y + i, mask, v);
        sum = _mm512_add_ps(sum, v);
    }
    const __m512 mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / (float)n);
    for (long i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 v = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, y + i), mean);
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 factor = _mm512_set1_ps(1 / sqrtf(_mm512_reduce_add_ps(squares) / (float)n + epsilon));
    for (long i = 0; i < n; i += 16) {
        __mmask16 mask = first_lanes(n - i);
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, y + i), mean), factor);
        v = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(mask, weight + i), _mm512_maskz_loadu_ps(mask, bias + i));
        _mm512_mask_storeu_ps(y + i, mask, v);
    }
}
