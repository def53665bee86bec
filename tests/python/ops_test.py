#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The operators as Python sees them: ops_test.py LIBRARY TORCH_VERSION [opcheck]. Each is compared with the plain torch formula, and with
`opcheck` goes through torch.library.opcheck too (schema, autograd, fake tensors, dynamic shapes), which needs more packages. Ends with 77,
which ctest counts as skipped, where Python has no torch of the version that the library was built with, or not what opcheck needs."""
import sys
import unittest

SKIPPED = 77
runs_opcheck = sys.argv[3:] == ["opcheck"]
try:
    import torch
    from torch.library import opcheck
    if runs_opcheck:
        import torch.testing._internal.optests  # noqa: F401  what opcheck runs, and what that needs beside torch
except (ImportError, OSError) as missing:  # OSError: a library that torch itself needs
    print(f"skipped: {missing}")
    sys.exit(SKIPPED)
library, wanted = sys.argv[1], sys.argv[2]
if torch.__version__.split("+")[0] != wanted:
    print(f"skipped: Python has torch {torch.__version__}, the library was built with {wanted}")
    sys.exit(SKIPPED)
torch.ops.load_library(library)
ops = torch.ops.espalier
torch.manual_seed(0)

ALL_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
# The size of these results is in the values of num_kept: tracing breaks off there, and says so.
DATA_DEPENDENT_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
DTYPES = ((torch.float32, 2e-5), (torch.bfloat16, 2e-2), (torch.float16, 4e-3))
N, HEADS, KV_HEADS, WIDTH = 37, 4, 2, 16
SCALE = WIDTH ** -0.5


def int64(*values):
    return torch.tensor(values, dtype=torch.int64)


def normal(*sizes, dtype=torch.float32):
    return torch.randn(*sizes).to(dtype)


def cosine(x, y):
    return torch.nn.functional.normalize(x.float(), dim=-1) @ torch.nn.functional.normalize(y.float(), dim=-1).T


def scores(query, key):
    """[h, n, n] of one sequence."""
    keys = key.float().repeat_interleave(query.shape[1] // key.shape[1], 1)
    return torch.einsum("ihd,jhd->hij", query.float(), keys) * SCALE


def causal(s):
    return s.masked_fill(torch.ones(s.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)


class Ops(unittest.TestCase):
    def close(self, actual, expected, tolerance):
        torch.testing.assert_close(actual.float(), expected.float(), rtol=tolerance, atol=tolerance)

    def check(self, op, arguments, checks=ALL_CHECKS, **keywords):
        if runs_opcheck:
            opcheck(op.default, arguments, keywords, test_utils=checks)

    def check_gradients(self, op, arguments, **keywords):
        """The same with inputs that want gradients. Shapes stay fixed: the derivatives are composed of library operators."""
        if not runs_opcheck:
            return
        wanting = tuple(a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments)
        opcheck(op.default, wanting, keywords, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))

    def test_rms_norm(self):
        for dtype, tolerance in DTYPES:
            x, weight = normal(5, N, 24, dtype=dtype), normal(24, dtype=dtype)
            wide = x.float()
            expected = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype) * weight
            self.close(ops.rms_norm(x, weight, 1e-5), expected, tolerance)
        self.check(ops.rms_norm, (x, weight, 1e-5))
        self.check_gradients(ops.rms_norm, (x.float(), weight.float(), 1e-5))

    def test_rope(self):
        def turned(x, cos, sin):
            half = x.shape[-1] // 2
            return x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None]

        for dtype, tolerance in DTYPES:
            query, key = normal(N, HEADS, WIDTH, dtype=dtype), normal(N, KV_HEADS, WIDTH, dtype=dtype)
            angle = torch.rand(N, WIDTH // 2).repeat(1, 2) * 6
            cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
            for actual, x in zip(ops.rope(query, key, cos, sin), (query, key)):
                self.close(actual, turned(x.float(), cos.float(), sin.float()), tolerance)
        self.check(ops.rope, (query, key, cos, sin))
        self.check_gradients(ops.rope, (query.float(), key.float(), cos.float(), sin.float()))

    def test_linear(self):
        for dtype, tolerance in DTYPES:
            weight = normal(48, 32, dtype=dtype)
            for rows in (1, 3, N):
                x = normal(rows, 32, dtype=dtype)
                self.close(ops.linear(x, weight), x.float() @ weight.float().T, 4 * tolerance)
        self.check(ops.linear, (x, weight))
        self.check_gradients(ops.linear, (x.float(), weight.float()))

    def test_linear_int8(self):
        weight = torch.randint(-127, 128, (12, WIDTH), dtype=torch.int8)
        scale = torch.rand(12) / 500
        for rows in (1, 20):
            x = normal(rows, WIDTH)
            self.close(ops.linear_int8(x, weight, scale), x @ (weight.float() * scale[:, None]).T, 1e-5)
        self.check(ops.linear_int8, (x, weight, scale))

    def test_silu_mul(self):
        for dtype, tolerance in DTYPES:
            gate, up = normal(N, 40, dtype=dtype), normal(N, 40, dtype=dtype)
            self.close(ops.silu_mul(gate, up), torch.nn.functional.silu(gate.float()) * up.float(), tolerance)
        self.check(ops.silu_mul, (gate, up))
        self.check_gradients(ops.silu_mul, (gate.float(), up.float()))

    def attention_inputs(self, dtype=torch.float32):
        return normal(N, HEADS, WIDTH, dtype=dtype), normal(N, KV_HEADS, WIDTH, dtype=dtype), normal(N, KV_HEADS, WIDTH, dtype=dtype)

    def test_attention(self):
        packed = (int64(0, 20, N), int64(0, 20), int64(20, N - 20), SCALE, True)
        for dtype, tolerance in DTYPES:
            query, key, value = self.attention_inputs(dtype)
            output, lse = ops.attention(query, key, value, *packed)
            for begin, end in ((0, 20), (20, N)):
                s = causal(scores(query[begin:end], key[begin:end]))
                values = value[begin:end].float().repeat_interleave(HEADS // KV_HEADS, 1)
                self.close(output[begin:end], torch.einsum("hij,jhd->ihd", s.softmax(-1), values), tolerance)
                self.close(lse[:, begin:end], s.logsumexp(-1), tolerance)
        self.check(ops.attention, (query, key, value, *packed))
        self.check(ops.attention, self.attention_inputs() + packed, window=5, query_position=torch.arange(N),
                   key_position=torch.arange(N))
        self.check_gradients(ops.attention, self.attention_inputs() + packed)

    def test_attention_decode(self):
        begin, length = int64(2, 20), int64(11, N - 20)
        for dtype, tolerance in DTYPES:
            (_, key, value), query = self.attention_inputs(dtype), normal(2, HEADS, WIDTH, dtype=dtype)
            output, lse = ops.attention_decode(query, key, value, begin, length, 64, SCALE)
            for row, (first, count) in enumerate(zip(begin.tolist(), length.tolist())):
                s = scores(query[row:row + 1], key[first:first + count])
                values = value[first:first + count].float().repeat_interleave(HEADS // KV_HEADS, 1)
                self.close(output[row:row + 1], torch.einsum("hij,jhd->ihd", s.softmax(-1), values), tolerance)
                self.close(lse[:, row:row + 1], s.logsumexp(-1), tolerance)
        self.check(ops.attention_decode, (query, key, value, begin, length, 64, SCALE))
        self.check(ops.attention_decode, (query, key, value, begin, length, 64, SCALE), window=5, query_position=begin + length - 1,
                   key_position=torch.arange(N))

    def test_merge_states(self):
        for dtype, tolerance in DTYPES:
            a, b = normal(N, HEADS, WIDTH, dtype=dtype), normal(N, HEADS, WIDTH, dtype=dtype)
            lse_a, lse_b = 3 * normal(HEADS, N), 3 * normal(HEADS, N)
            lse_a[1, 2], lse_b[0, 3] = -torch.inf, -torch.inf
            output, lse = ops.merge_states(a, lse_a, b, lse_b)
            share = torch.stack((lse_a, lse_b)).softmax(0).transpose(1, 2)[..., None]
            self.close(output, share[0] * a.float() + share[1] * b.float(), tolerance)
            self.close(lse, torch.logaddexp(lse_a, lse_b), tolerance)
        self.check(ops.merge_states, (a, lse_a, b, lse_b))
        self.check_gradients(ops.merge_states, (a.float(), lse_a, b.float(), lse_b))

    def probe_inputs(self, dtype=torch.float32):
        query, key, _ = self.attention_inputs(dtype)
        lse = causal(scores(query, key)).logsumexp(-1)
        return (query, key, lse), causal(scores(query, key)).softmax(-1)

    def test_attention_probe(self):
        rows, columns = int64(30, 36), torch.arange(3, 28)
        groups = (rows, int64(0, 2), columns, int64(0, 25))
        for dtype, tolerance in DTYPES:
            layer, probability = self.probe_inputs(dtype)
            expected = probability[:, rows][:, :, columns]
            for heads, reduced in (("mean", expected.mean(0)), ("max", expected.amax(0)), ("each", expected)):
                self.close(ops.attention_probe(*layer, *groups, SCALE, True, heads, True), reduced.mean(-2), tolerance)
                self.close(ops.attention_probe(*layer, *groups, SCALE, True, heads, False), reduced, tolerance)
        self.check(ops.attention_probe, (*layer, *groups, SCALE, True, "each", True))
        query, key, lse = layer
        apart = (query[25:], key, lse[:, 25:], int64(5, 11), *groups[1:])
        own_key = torch.arange(25, N)
        self.close(ops.attention_probe(*apart, SCALE, True, "mean", True, own_key=own_key), expected.mean(0).mean(-2), 4e-3)
        self.check(ops.attention_probe, (*apart, SCALE, True, "mean", True), own_key=own_key)
        layer, _ = self.probe_inputs()
        self.check_gradients(ops.attention_probe, (*layer, *groups, SCALE, True, "mean", True))

    def test_attention_growth(self):
        rows, columns = int64(36), torch.arange(3, 28)
        groups = (rows, int64(0, 1), columns, int64(0, 25))
        for dtype, tolerance in DTYPES:
            (lower, before), (upper, after) = self.probe_inputs(dtype), self.probe_inputs(dtype)
            hidden, direction = normal(N, 48, dtype=dtype), normal(1, 48)
            growth = (after - before)[:, 36, columns].mean(0).clamp_min(0)
            self.close(ops.attention_growth(*lower, *upper, *groups, SCALE, False), growth, tolerance)
            near = 0.6 * cosine(hidden[columns], direction)[:, 0]
            self.close(ops.attention_growth(*lower, *upper, *groups, SCALE, False, 0, None, hidden, direction, 0.6), growth + near, tolerance)
        self.check(ops.attention_growth, (*lower, *upper, *groups, SCALE, False, 0, None, hidden, direction, 0.6))

    def test_cosines(self):
        for dtype, _ in DTYPES:
            x, y, index = normal(N, 70, dtype=dtype), normal(11, 70, dtype=dtype), int64(3, 3, 0)
            self.close(ops.cosine_score(x, y), cosine(y, x), 1e-5)
            self.close(ops.cosine_score(x, y, index), cosine(y, x[index]), 1e-5)
            self.close(ops.pairwise_cosine(x, y), cosine(x, y), 1e-5)
        self.check(ops.cosine_score, (x, y, index))
        self.check(ops.pairwise_cosine, (x, y))
        self.check_gradients(ops.pairwise_cosine, (x.float(), y.float()))

    def test_selections(self):
        x, begin, kept = normal(N, 20), int64(0, 17, N), int64(5, 6)
        # Greedy by the plain formulas, one block after another. The last two rows that nothing covers cover each other
        # alike: of equal gains the lower index wins.
        for first, last, count in ((0, 17, 5), (17, N, 6)):
            likeness = cosine(x[first:last], x[first:last]).double()
            cover, picks = torch.zeros(last - first, dtype=torch.double), []
            apart = (1 - likeness).fill_diagonal_(torch.inf)
            far = [int(apart.amin(1).argmax())]
            for _ in range(count):
                gain = ((1 + likeness) / 2 - cover[:, None]).clamp_min(0).sum(0)
                gain[picks] = -1
                picks.append(int((gain >= gain.max() - 1e-6).nonzero()[0]))
                cover = torch.maximum(cover, (1 + likeness[:, picks[-1]]) / 2)
            while len(far) < count:
                nearest = (1 - likeness[:, far]).amin(1)
                nearest[far] = -1
                far.append(int(nearest.argmax()))
            where = slice(0, 5) if first == 0 else slice(5, 11)
            chosen = ops.facility_location_greedy(x, begin, kept, "affine")[where] - first
            self.assertEqual(chosen.tolist(), picks)
            self.assertEqual((ops.max_min_select(x, begin, kept, "cosine")[where] - first).tolist(), far)
        self.check(ops.facility_location_greedy, (x, begin, kept, "clamp"), DATA_DEPENDENT_CHECKS)
        self.check(ops.max_min_select, (x, begin, kept, "l1"), DATA_DEPENDENT_CHECKS)

    def test_greedy_dpp(self):
        x, relevance, begin, kept = normal(N, 60), torch.rand(N) + 0.5, int64(0, N), int64(6)
        kernel, picks = relevance[:, None] * cosine(x, x) * relevance, []
        for _ in range(6):
            left = [i for i in range(N) if i not in picks]
            picks.append(max(left, key=lambda i: float(kernel[picks + [i]][:, picks + [i]].double().det())))
        self.assertEqual(ops.greedy_dpp(x, relevance, begin, kept).tolist(), picks)
        self.check(ops.greedy_dpp, (x, relevance, begin, kept), DATA_DEPENDENT_CHECKS)

    def test_topk_sorted(self):
        s, begin, kept = normal(N), int64(0, 17, N), int64(5, 6)
        expected = torch.cat([s[:17].topk(5).indices.sort().values, s[17:].topk(6).indices.sort().values + 17])
        self.assertTrue(torch.equal(ops.topk_sorted(s, begin, kept), expected))
        self.check(ops.topk_sorted, (s, begin, kept), DATA_DEPENDENT_CHECKS)

    def test_rows(self):
        x, index = normal(N, 3, 5), int64(4, 0, 4)
        self.assertTrue(torch.equal(ops.gather_rows(x, index), x[index]))
        self.check(ops.gather_rows, (x, index))
        self.check_gradients(ops.gather_rows, (x, index))

    def test_merge_tokens(self):
        index, begin, weight = int64(5, 1, 1, 7, 2), int64(0, 2, 2, 5), torch.rand(5) + 0.5
        for dtype, tolerance in DTYPES:
            x = normal(N, 33, dtype=dtype)
            rows = x[index].float() * weight[:, None]
            expected = torch.stack([rows[:2].sum(0) / weight[:2].sum(), torch.zeros(33), rows[2:].sum(0) / weight[2:].sum()])
            self.close(ops.merge_tokens(x, index, begin, weight), expected, tolerance)
            self.close(ops.merge_tokens(x, index, begin)[0], x[index[:2]].float().mean(0), tolerance)
        self.check(ops.merge_tokens, (x, index, begin))
        self.check(ops.merge_tokens, (x, index, begin, weight))
        self.check_gradients(ops.merge_tokens, (x.float(), index, begin, weight))

    def test_compact_kv(self):
        key, value = normal(N, KV_HEADS, WIDTH), normal(N, KV_HEADS, WIDTH)
        index, each = int64(3, 9), torch.tensor([[3, 9], [0, 1]])
        for actual, x in zip(ops.compact_kv(key, value, index), (key, value)):
            self.assertTrue(torch.equal(actual, x[index]))
        for actual, x in zip(ops.compact_kv(key, value, each), (key, value)):
            self.assertTrue(torch.equal(actual, torch.stack([x[each[g], g] for g in range(KV_HEADS)], 1)))
        self.check(ops.compact_kv, (key, value, index))
        self.check(ops.compact_kv, (key, value, each))

    def test_every_op_is_here(self):
        named = {schema.name.split("::")[1] for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("espalier::")}
        with open(__file__, encoding="utf-8") as file:
            here = file.read()
        self.assertEqual(len(named), 19)
        self.assertEqual([op for op in sorted(named) if f"ops.{op}" not in here], [])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
