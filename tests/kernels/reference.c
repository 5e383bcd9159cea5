#include "tests/kernels/reference.h"

#include <math.h>
#include <stdlib.h>

double ref_sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

double ref_silu(double x)
{
    return x * ref_sigmoid(x);
}

double ref_dot(const float *a, const float *b, size_t count)
{
    double sum = 0.0;

    for (size_t i = 0; i < count; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

double ref_dot_square(const float *a, const float *b, size_t count)
{
    double sum = 0.0;

    for (size_t i = 0; i < count; i++)
        sum += (double)a[i] * b[i] * a[i] * b[i];
    return sum;
}

void ref_rms_norm(const double *x, const float *weight, size_t count, double epsilon, double *out)
{
    double sum = 0.0;

    for (size_t i = 0; i < count; i++)
        sum += x[i] * x[i];
    for (size_t i = 0; i < count; i++)
        out[i] = x[i] / sqrt(sum / (double)count + epsilon) * weight[i];
}

void ref_head_norm(const float *x, size_t count, double epsilon, double scale, double *out)
{
    double sum = 0.0;

    for (size_t i = 0; i < count; i++)
        sum += ref_silu(x[i]) * ref_silu(x[i]);
    for (size_t i = 0; i < count; i++)
        out[i] = ref_silu(x[i]) / sqrt(sum + epsilon) * scale;
}

void ref_rope(double *x, int head_dim, double position, const float *frequencies, double scale)
{
    int half = head_dim / 2;

    for (int i = 0; i < half; i++) {
        double angle = position * frequencies[i], a = x[i], b = x[i + half];
        x[i] = (a * cos(angle) - b * sin(angle)) * scale;
        x[i + half] = (b * cos(angle) + a * sin(angle)) * scale;
    }
}

void ref_attend(const float *q, const float *k, const float *v, size_t stride, int begin, int end,
                int head_dim, double scale, double *out, double *lse)
{
    double top = -INFINITY, sum = 0.0;

    for (int p = begin; p < end; p++)
        top = fmax(top, scale * ref_dot(q, k + (size_t)p * stride, (size_t)head_dim));
    for (int i = 0; i < head_dim; i++)
        out[i] = 0.0;
    for (int p = begin; p < end; p++) {
        double weight = exp(scale * ref_dot(q, k + (size_t)p * stride, (size_t)head_dim) - top);
        sum += weight;
        for (int i = 0; i < head_dim; i++)
            out[i] += weight * v[(size_t)p * stride + (size_t)i];
    }
    for (int i = 0; i < head_dim; i++)
        out[i] /= sum;
    if (lse != NULL)
        *lse = top + log(sum);
}

void ref_convolution(const double *u, const double *kernels, int tokens, int channels, int taps,
                     double *out)
{
    for (int t = 0; t < tokens; t++) {
        for (int c = 0; c < channels; c++) {
            double sum = 0.0;
            for (int w = 0; w < taps; w++) {
                int from = t - taps + 1 + w;
                if (from >= 0)
                    sum += kernels[((size_t)t * (size_t)channels + (size_t)c) * (size_t)taps +
                                   (size_t)w] *
                           u[(size_t)from * (size_t)channels + (size_t)c];
            }
            out[(size_t)t * (size_t)channels + (size_t)c] = ref_silu(sum);
        }
    }
}

static void delta_token(const double *q, const double *k, const double *v, double g, double beta,
                        int d_k, int d_v, double *state, double *out)
{
    double decay = exp(g);

    for (int j = 0; j < d_v; j++) {
        double known = 0.0, read = 0.0;
        for (int i = 0; i < d_k; i++)
            known += decay * state[i * d_v + j] * k[i];
        for (int i = 0; i < d_k; i++) {
            state[i * d_v + j] = decay * state[i * d_v + j] + k[i] * beta * (v[j] - known);
            read += q[i] * state[i * d_v + j];
        }
        out[j] = read;
    }
}

void ref_delta(const double *q, const double *k, const double *v, const double *g,
               const double *beta, int tokens, int heads, int d_k, int d_v, double *state,
               double *out)
{
    for (size_t at = 0; at < (size_t)tokens * (size_t)heads; at += (size_t)heads)
        delta_token(q + at * (size_t)d_k, k + at * (size_t)d_k, v + at * (size_t)d_v, g[at],
                    beta[at], d_k, d_v, state, out + at * (size_t)d_v);
}
