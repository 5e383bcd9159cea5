/* The formulas in float64, as plain as they can be written and without a line of kernels/. Each
 * works on one row, one head or one whole sequence. */
#ifndef JETD_TESTS_KERNELS_REFERENCE_H
#define JETD_TESTS_KERNELS_REFERENCE_H

#include <stddef.h>

double ref_silu(double x);
double ref_sigmoid(double x);
double ref_dot(const float *a, const float *b, size_t count);
/* Sum of the squared terms of the same: what its square is on average when signs are random. */
double ref_dot_square(const float *a, const float *b, size_t count);

/* out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i] */
void ref_rms_norm(const double *x, const float *weight, size_t count, double epsilon, double *out);

/* silu, then x / sqrt(sum x^2 + epsilon) * scale */
void ref_head_norm(const float *x, size_t count, double epsilon, double scale, double *out);

/* Rotates one head in place. */
void ref_rope(double *x, int head_dim, double position, const float *frequencies, double scale);

/* One query against keys begin .. end - 1; rows of k and v are `stride` apart. lse may be NULL. */
void ref_attend(const float *q, const float *k, const float *v, size_t stride, int begin, int end,
                int head_dim, double scale, double *out, double *lse);

/* The whole sequence from nothing: u [tokens, ld_u], kernels [tokens, channels, taps]. */
void ref_convolution(const double *u, const double *kernels, int tokens, int channels, int taps,
                     double *out);

/* One head over a whole sequence, its rows `ld` apart; state [d_k, d_v] is read and written. */
void ref_delta(const double *q, const double *k, const double *v, const double *g,
               const double *beta, int tokens, int heads, int d_k, int d_v, double *state,
               double *out);

#endif
