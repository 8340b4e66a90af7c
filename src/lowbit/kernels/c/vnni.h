/* Products with AVX512-VNNI: vpdpbusd adds four products u8 * s8 in 32 bits. */
#ifndef __AMX_INT8__
enum { ROWS = 8 };
#endif

/* sum += four products of each lane; compilers put two moves beside the intrinsic. */
#define ADD_PRODUCTS(sum, q, w) __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(q), "v"(w))

static inline __attribute__((always_inline)) void rows_tile(const uint8_t *q, long stride, const int8_t *w, long groups,
                                                            int rows, long panels, int32_t *out)
{
    __m512i acc[8][2];
    const int8_t *next = w + (panels - 1) * groups * 64;
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = _mm512_setzero_si512();
    for (long i = 0; i < groups; i++) {
        __m512i b0 = _mm512_loadu_si512(w + 64 * i), b1 = _mm512_loadu_si512(next + 64 * i);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, q + r * stride + 4 * i, 4);
            __m512i a = _mm512_set1_epi32(four);
            ADD_PRODUCTS(acc[r][0], a, b0);
            ADD_PRODUCTS(acc[r][1], a, b1);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < 2; j++) _mm512_storeu_si512(out + (r * PANELS + j) * COLS, acc[r][j]);
}

static inline void vnni_tile(const uint8_t *q, long stride, const int8_t *w, long groups, long rows, long panels,
                             int32_t *out)
{
    if (rows > 4) rows_tile(q, stride, w, groups, 8, panels, out);
    else if (rows > 2) rows_tile(q, stride, w, groups, 4, panels, out);
    else if (rows > 1) rows_tile(q, stride, w, groups, 2, panels, out);
    else rows_tile(q, stride, w, groups, 1, panels, out);
}

#ifndef __AMX_INT8__
static inline void tile(const uint8_t *q, long stride, const int8_t *w, long groups, long rows, long panels, long limit,
                        Ahead ahead, int32_t *out)
{
    (void)limit, (void)ahead;
    vnni_tile(q, stride, w, groups, rows, panels, out);
}

static inline void begin(void) {}
static inline void end(void) {}
#endif
