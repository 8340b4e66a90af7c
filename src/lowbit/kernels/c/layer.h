/* A layer of an encoder that normalises after each residual sum: BERT, and what is built like it. */

typedef struct {
    Weight query, key, value, attended, inner, outer;
    const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
    float epsilon1, epsilon2, scaling; /* scaling: of the scores of the attention */
    long heads;
} Layer;

/* Room for the values between the parts; rows are padded by ROWS. */
typedef struct {
    void *query, *key, *value, *attended; /* [tokens, heads * width], bfloat16 where `half` */
    float *sum;                           /* [tokens, hidden] */
    void *inner;                          /* [tokens, inner] */
    uint8_t *codes;                       /* [tokens, the most inputs, padded] */
    float *steps, *zeros;                 /* [tokens] */
    long half;
} Room;

static void add_norm(Rows sum, Rows residual, long tokens, long size, const float *weight, const float *bias,
                     float epsilon, Rows out, long part, long parts)
{
    Share own = share(tokens, part, parts);
    for (long t = own.first; t < own.last; t++)
        add_norm_row(at(sum, t, 0), at(residual, t, 0), size, weight, bias, epsilon, at(out, t, 0));
}

/* Waits for the other threads where they share a part. */
static inline void wait_for(long parts)
{
    if (parts > 1) {
#pragma omp barrier
    }
}

static void project(const Layer *l, Rows x, Rounded rounded, long tokens, Rows query, Rows key, Rows value, long part,
                    long parts)
{
    round_rows(x, tokens, l->query.in, rounded, part, parts);
    wait_for(parts);
    multiply(&l->query, x, rounded, tokens, query, part, parts);
    multiply(&l->key, x, rounded, tokens, key, part, parts);
    multiply(&l->value, x, rounded, tokens, value, part, parts);
}

/* Query, key and value of each token. */
void lowbit_project(const Layer *l, const Room *room, float *x, long tokens, int threads)
{
    long width = l->query.out, chunk = chunk_of(tokens, threads);
    Rows inputs = {x, l->query.in, 0}, query = {room->query, width, room->half}, key = {room->key, width, room->half},
         value = {room->value, width, room->half};
    Rounded rounded = {room->codes, room->steps, room->zeros};
#pragma omp parallel num_threads(threads)
    {
        begin();
        if (!chunk)
            project(l, inputs, rounded, tokens, query, key, value, omp_get_thread_num(), omp_get_num_threads());
        else {
#pragma omp for schedule(dynamic)
            for (long t = 0; t < tokens; t += chunk)
                project(l, rows_from(inputs, t), rounded_from(rounded, chunk * omp_get_thread_num(), l->query.in),
                        tokens - t < chunk ? tokens - t : chunk, rows_from(query, t), rows_from(key, t),
                        rows_from(value, t), 0, 1);
        }
        end();
    }
}

static void feed(const Layer *l, Rows attended, Rows residual, Rounded rounded, long tokens, Rows sum, Rows inner,
                 Rows out, long part, long parts)
{
    long hidden = l->attended.out;
    round_rows(attended, tokens, l->attended.in, rounded, part, parts);
    wait_for(parts);
    multiply(&l->attended, attended, rounded, tokens, sum, part, parts);
    wait_for(parts);
    add_norm(sum, residual, tokens, hidden, l->norm1_weight, l->norm1_bias, l->epsilon1, sum, part, parts);
    round_rows(sum, tokens, hidden, rounded, part, parts);
    wait_for(parts);
    multiply(&l->inner, sum, rounded, tokens, inner, part, parts);
    wait_for(parts);
    round_rows(inner, tokens, l->inner.out, rounded, part, parts);
    wait_for(parts);
    multiply(&l->outer, inner, rounded, tokens, out, part, parts);
    wait_for(parts);
    add_norm(out, sum, tokens, hidden, l->norm2_weight, l->norm2_bias, l->epsilon2, out, part, parts);
}

/* From the attended values to the outputs of the layer. */
void lowbit_feed(const Layer *l, const Room *room, float *x, long tokens, float *out, int threads)
{
    long hidden = l->attended.out, chunk = chunk_of(tokens, threads);
    Rows residual = {x, hidden, 0}, sum = {room->sum, hidden, 0}, outputs = {out, hidden, 0};
    Rows attended = {room->attended, l->attended.in, room->half}, inner = {room->inner, l->inner.out, HALF};
    Rounded rounded = {room->codes, room->steps, room->zeros};
#pragma omp parallel num_threads(threads)
    {
        begin();
        if (!chunk)
            feed(l, attended, residual, rounded, tokens, sum, inner, outputs, omp_get_thread_num(),
                 omp_get_num_threads());
        else {
#pragma omp for schedule(dynamic)
            for (long t = 0; t < tokens; t += chunk) {
                long own = chunk * omp_get_thread_num(); /* the same memory for each chunk, so that it stays cached */
                feed(l, rows_from(attended, t), rows_from(residual, t), rounded_from(rounded, own, l->inner.out),
                     tokens - t < chunk ? tokens - t : chunk, rows_from(sum, own), rows_from(inner, own),
                     rows_from(outputs, t), 0, 1);
            }
        }
        end();
    }
}

#ifdef __AMX_BF16__
#include "attention.h"
#endif
