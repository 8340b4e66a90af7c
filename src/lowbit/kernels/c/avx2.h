/* Products with AVX2. vpmaddubsw adds two products u8 * s8 in 16 bits and saturates. Codes of at most 64 cannot reach
   that: 255 * 64 * 2 < 2^15. Codes of at most 32 leave room for the sum of two such results, codes of at most 16 for
   that of four, which saves a quarter and three eighths of the multiplications. */
enum { ROWS = 4, PANELS = 1 };

/* `depth` results of vpmaddubsw are added in 16 bits. */
static inline void tile_at_depth(const uint8_t *q, long stride, const int8_t *w, long groups, int depth, int32_t *out)
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

static inline void tile(const uint8_t *q, long stride, const int8_t *w, long groups, long rows, long panels, long limit,
                        Ahead ahead, int32_t *out)
{
    (void)rows, (void)panels, (void)ahead;
    if (limit <= 16) tile_at_depth(q, stride, w, groups, 4, out);
    else if (limit <= 32) tile_at_depth(q, stride, w, groups, 2, out);
    else tile_at_depth(q, stride, w, groups, 1, out);
}

static inline void begin(void) {}
static inline void end(void) {}
