/* Attention in bfloat16 with AMX, for heads whose width is a multiple of 32. */

enum { QUERIES = 16, PAIRS = 32 };

static inline long round_up(long n, long to) { return (n + to - 1) / to * to; }

/* Keys [length, width] as tiles of 32 dimensions, two by two, by 16 keys. */
static void pack_keys(const uint16_t *keys, long stride, long length, long width, uint16_t *packed)
{
    const __m512i apart = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                             _mm512_set1_epi32((int)stride));
    for (long key = 0; key < round_up(length, PAIRS); key += 16) {
        __mmask16 mask = first_lanes(length - key);
        for (long pair = 0; pair < width / 2; pair++, packed += 32)
            _mm512_storeu_si512(packed, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, apart,
                                                                    keys + key * stride + 2 * pair, 2));
    }
}

/* Values [length, width] as tiles of 32 keys, two by two, by 16 dimensions. */
static void pack_values(const uint16_t *values, long stride, long length, long width, uint16_t *packed)
{
    for (long key = 0; key < round_up(length, PAIRS); key += PAIRS)
        for (long column = 0; column < width; column += 16)
            for (long i = key; i < key + PAIRS; i += 2, packed += 32) {
                __m256i even = _mm256_setzero_si256(), odd = even;
                if (i < length) even = _mm256_loadu_si256((const __m256i *)(values + i * stride + column));
                if (i + 1 < length) odd = _mm256_loadu_si256((const __m256i *)(values + (i + 1) * stride + column));
                __m512i both = _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16);
                _mm512_storeu_si512(packed, _mm512_or_si512(both, _mm512_cvtepu16_epi32(even)));
            }
}

/* exp(v) to the precision of bfloat16; NaN where v is, as the second operand of a maximum is then taken. */
static inline __m512 exp16(__m512 v)
{
    v = _mm512_mul_ps(_mm512_max_ps(_mm512_set1_ps(-87), v), _mm512_set1_ps(1.44269504f));
    __m512 whole = _mm512_roundscale_ps(v, 8), f = _mm512_sub_ps(v, whole);
    __m512 e = _mm512_fmadd_ps(f, _mm512_set1_ps(0.05550411f), _mm512_set1_ps(0.24022651f));
    e = _mm512_fmadd_ps(f, e, _mm512_set1_ps(0.69314718f));
    return _mm512_scalef_ps(_mm512_fmadd_ps(f, e, _mm512_set1_ps(1)), whole);
}

/* Scores of one query to unnormalised probabilities in bfloat16; returns one over their sum, 0 where all are masked. */
static float softmax_row(const float *scores, const uint8_t *mask, long length, float scaling, uint16_t *out)
{
    const __m512 lowest = _mm512_set1_ps(-INFINITY), factor = _mm512_set1_ps(scaling);
    __m512 top = lowest, sum = _mm512_setzero_ps();
#define SEEN(i) \
    (mask ? first_lanes(length - (i)) & _mm_test_epi8_mask(_mm_maskz_loadu_epi8(first_lanes(length - (i)), mask + (i)), \
                                                           _mm_set1_epi8(-1)) \
          : first_lanes(length - (i)))
    for (long i = 0; i < length; i += 16)
        top = _mm512_max_ps(top, _mm512_mask_mul_ps(lowest, SEEN(i), _mm512_loadu_ps(scores + i), factor));
    float largest = _mm512_reduce_max_ps(top);
    const __m512 shift = _mm512_set1_ps(largest == -INFINITY ? 0 : largest);
    for (long i = 0; i < round_up(length, PAIRS); i += 16) {
        __m512 v = _mm512_fmsub_ps(_mm512_loadu_ps(scores + i), factor, shift);
        v = _mm512_maskz_mov_ps(SEEN(i), exp16(v));
        sum = _mm512_add_ps(sum, v);
        _mm256_storeu_si256((__m256i *)(out + i), to_bf16(v));
    }
#undef SEEN
    float total = _mm512_reduce_add_ps(sum);
    return total != 0 ? 1 / total : 0;
}

/* 16 queries of one head: scores, probabilities, and their mean of the values. */
static void attend(const uint16_t *queries, long stride, long rows, const uint16_t *keys, const uint16_t *values,
                   const uint8_t *mask, long mask_stride, long length, long width, float scaling, float *scores,
                   uint16_t *chances, uint16_t *out)
{
    long all = round_up(length, PAIRS);
    float factors[QUERIES];
    _Alignas(64) float sums[QUERIES * COLS];
    for (long key = 0; key < all; key += 16) {
        _tile_zero(0);
        for (long d = 0; d < width; d += 32) {
            _tile_loadd(4, queries + d, 2 * stride);
            _tile_loadd(6, keys + (key / 16 * width + d) * 16, 64);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, scores + key, 4 * all);
    }
    for (long r = 0; r < rows; r++)
        factors[r] = softmax_row(scores + r * all, mask ? mask + r * mask_stride : NULL, length, scaling,
                                 chances + r * all);
    for (long column = 0; column < width; column += 16) {
        _tile_zero(0);
        for (long key = 0; key < all; key += PAIRS) {
            _tile_loadd(4, chances + key, 2 * all);
            _tile_loadd(6, values + (key * width) + column * PAIRS, 64);
            _tile_dpbf16ps(0, 4, 6);
        }
        _tile_stored(0, sums, 64);
        for (long r = 0; r < rows; r++) {
            __m512 v = _mm512_mul_ps(_mm512_loadu_ps(sums + r * COLS), _mm512_set1_ps(factors[r]));
            _mm256_storeu_si256((__m256i *)(out + r * stride + column), to_bf16(v));
        }
    }
}

/* All of query, key, value and attended are bfloat16 here. Sequence b has the tokens from starts[b] on. */
static int attend_all(const Layer *l, const Room *room, const long *starts, long batch, const uint8_t *mask,
                      long mask_batch, long mask_query, int threads)
{
    long stride = l->query.out, width = stride / l->heads, longest = 0;
    for (long b = 0; b < batch; b++)
        if (starts[b + 1] - starts[b] > longest) longest = starts[b + 1] - starts[b];
    const long most = round_up(longest, PAIRS);
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *scores = aligned_alloc(64, QUERIES * most * 6 + most * width * 4);
        uint16_t *chances = (uint16_t *)(scores + QUERIES * most), *keys = chances + QUERIES * most;
        uint16_t *values = keys + most * width;
        failed = !scores;
        if (scores) memset(chances, 0, QUERIES * most * 2);
        begin();
#pragma omp for schedule(dynamic) collapse(2)
        for (long b = 0; b < batch; b++)
            for (long h = 0; h < l->heads; h++) {
                if (!scores) continue;
                long length = starts[b + 1] - starts[b], start = starts[b] * stride + h * width;
                pack_keys((const uint16_t *)room->key + start, stride, length, width, keys);
                pack_values((const uint16_t *)room->value + start, stride, length, width, values);
                for (long i = 0; i < length; i += QUERIES) {
                    const uint8_t *own = mask ? mask + b * mask_batch + i * mask_query : NULL;
                    attend((const uint16_t *)room->query + start + i * stride, stride,
                           length - i < QUERIES ? length - i : QUERIES, keys, values, own, mask_query, length, width,
                           l->scaling, scores, chances, (uint16_t *)room->attended + start + i * stride);
                }
            }
        end();
        free(scores);
    }
    return failed;
}

/* The whole layer for sequences that follow each other; with a mask all are equally long. Returns 0, or 1 where there
   was no memory. */
int lowbit_layer(const Layer *l, const Room *room, float *x, const long *starts, long batch, const uint8_t *mask,
                 long mask_batch, long mask_query, float *out, int threads)
{
    lowbit_project(l, room, x, starts[batch], threads);
    if (attend_all(l, room, starts, batch, mask, mask_batch, mask_query, threads)) return 1;
    lowbit_feed(l, room, x, starts[batch], out, threads);
    return 0;
}
