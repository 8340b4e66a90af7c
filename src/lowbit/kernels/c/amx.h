/* Products with AMX: a tile of 16 tokens by 64 inputs times one of 64 inputs by 16 rows of W, which is how a panel lies
   in memory. */
enum { ROWS = 32, FEW = 4 };
#include "vnni.h"

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Eight tiles of 16 rows of 64 bytes; static, as compilers do not know that loading it reads all of it. */
static const TileConfig CONFIG = {
    .palette = 1,
    .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
    .rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

static inline void begin(void) { _tile_loadconfig(&CONFIG); }

static inline void end(void) { _tile_release(); }

/* Sums of 16 tokens, or of 32 where `both`, by 2 panels: in tiles 0 to 3. 4 and 5 are the tokens, 6 and 7 the panels. */
static inline __attribute__((always_inline)) void sum_tiles(const uint8_t *q, long stride, const int8_t *w,
                                                            const int8_t *next, long groups, Ahead ahead,
                                                            const int both)
{
    const char *fetch = (const char *)ahead.from, *end = fetch + 64 * ahead.lines;
    const long step = (64 * ahead.lines / (groups / 16) + 63) / 64 * 64;
    for (long i = 0; i < groups; i += 16) {
        for (const char *stop = fetch + step; fetch < stop && fetch < end; fetch += 64)
            _mm_prefetch(fetch, _MM_HINT_T1);
        _tile_loadd(4, q + 4 * i, stride);
        _tile_loadd(6, w + 64 * i, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, next + 64 * i, 64);
        _tile_dpbusd(1, 4, 7);
        if (both) {
            _tile_loadd(5, q + 16 * stride + 4 * i, stride);
            _tile_dpbusd(2, 5, 6);
            _tile_dpbusd(3, 5, 7);
        }
    }
}

/* A panel that is missing is taken to be the one before it, and its sums are not used. */
static inline void tile(const uint8_t *q, long stride, const int8_t *w, long groups, long rows, long panels, long limit,
                        Ahead ahead, int32_t *out)
{
    (void)limit;
    if (rows <= FEW) {
        vnni_tile(q, stride, w, groups, rows, panels, out);
        return;
    }
    const int8_t *next = w + (panels - 1) * groups * 64;
    const int line = PANELS * COLS * sizeof(int32_t);
    _tile_zero(0);
    _tile_zero(1);
    if (rows <= 16) sum_tiles(q, stride, w, next, groups, ahead, 0);
    else {
        _tile_zero(2);
        _tile_zero(3);
        sum_tiles(q, stride, w, next, groups, ahead, 1);
        _tile_stored(2, out + 16 * PANELS * COLS, line);
        _tile_stored(3, out + 16 * PANELS * COLS + COLS, line);
    }
    _tile_stored(0, out, line);
    _tile_stored(1, out + COLS, line);
}
