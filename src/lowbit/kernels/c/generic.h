/* The parts around the products, in plain C that compilers turn into AVX2. */
enum { LANES = 8, HALF = 0 };

/* One token on 256 levels between its smallest and its largest value, 0 among them. A NaN or infinity makes its step
   NaN, and so the whole output row. */
static inline void round_row(const void *values, int half, long k, long padded, uint8_t *q, float *step, float *zero)
{
    (void)half; /* nothing is kept in halves here */
    const float *x = values;
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

/* From the products of a block of tokens with `cols` rows of W from `first` on to its outputs. */
static inline void finish(const Weight *w, long first, long cols, Rows x, const float *steps, const float *zeros,
                          long rows, const int32_t *acc, Rows out)
{
    const float *scale = w->scale + first, *bias = w->bias + first;
    const int32_t *sums = w->sums + first;
    for (long r = 0; r < rows; r++) {
        float values[COLS];
        for (int j = 0; j < COLS; j++)
            values[j] = ((float)acc[r * COLS + j] - zeros[r] * (float)sums[j]) * (steps[r] * scale[j]) + bias[j];
        if (w->rest_ptr[first + cols] > w->rest_ptr[first]) add_rest(w, first, cols, at(x, r, 0), x.half, values);
        if (w->activation == 1)
            for (int j = 0; j < COLS; j++) values[j] = gelu(values[j]);
        if (w->activation == 2)
            for (int j = 0; j < COLS; j++) values[j] = values[j] < 0 ? 0 : values[j];
        memcpy(at(out, r, first), values, cols * sizeof(float));
    }
}

/* LayerNorm(x + residual). */
static inline void add_norm_row(const float *x, const float *residual, long n, const float *weight, const float *bias,
                                float epsilon, float *y)
{
    float sums[LANES] = {0}, squares[LANES] = {0}, sum = 0, square = 0;
    for (long i = 0; i < n; i++) y[i] = x[i] + residual[i];
    for (long i = 0; i < n / LANES; i++)
        for (int j = 0; j < LANES; j++) sums[j] += y[i * LANES + j];
    for (long i = n / LANES * LANES; i < n; i++) sum += y[i];
    for (int j = 0; j < LANES; j++) sum += sums[j];
    float mean = sum / (float)n;
    for (long i = 0; i < n / LANES; i++)
        for (int j = 0; j < LANES; j++) squares[j] += (y[i * LANES + j] - mean) * (y[i * LANES + j] - mean);
    for (long i = n / LANES * LANES; i < n; i++) square += (y[i] - mean) * (y[i] - mean);
    for (int j = 0; j < LANES; j++) square += squares[j];
    float factor = 1 / sqrtf(square / (float)n + epsilon);
    for (long i = 0; i < n; i++) y[i] = (y[i] - mean) * factor * weight[i] + bias[i];
}
