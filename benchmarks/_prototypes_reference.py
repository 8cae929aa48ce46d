"""Joint matching pursuit as it is defined, with a (K, D, N) tensor in each space.

Written from the equations of Tang et al., ECCV 2022, except that a candidate is picked once: the
weights of all candidates, the residuals, and the sum of their squares.
"""

import math


def direct_picks(student, teacher, candidates, num_prototypes, alpha):
    """Indices into ``candidates`` (K,); ``student`` (N, D_s) and ``teacher`` (N, D_t) unit rows."""
    f_s, f_t = student[candidates], teacher[candidates]  # (K, D)
    r_s, r_t = student.t().clone(), teacher.t().clone()  # (D, N)
    picks = []
    for _ in range(num_prototypes):
        a, b = f_s @ r_s, f_t @ r_t  # (K, N)
        w_s = (alpha * (a + b) + a) / (1 + 2 * alpha)
        w_t = (alpha * (a + b) + b) / (1 + 2 * alpha)
        error = alpha * (w_s - w_t).square().sum(dim=1)
        for feature, weight, residual in ((f_s, w_s, r_s), (f_t, w_t, r_t)):
            difference = feature[:, :, None] * weight[:, None, :] - residual  # (K, D, N)
            error += difference.square().sum(dim=(1, 2))
        error[picks] = math.inf
        k = int(error.argmin())
        picks.append(k)
        r_s -= f_s[k][:, None] * w_s[k]
        r_t -= f_t[k][:, None] * w_t[k]
    return picks
