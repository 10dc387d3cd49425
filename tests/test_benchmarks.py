"""The benchmarks run, print what they promise, and refuse to time contenders that do not do the same work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def printed(*command: str) -> str:
    source = str(FOLDER.parent / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(FOLDER), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def checked(script: str, target: Path) -> dict[str, Any]:
    """The record of a quick run, which also stands in a file, after two tables."""
    *above, last = printed(str(FOLDER / script), "--quick", "--json", str(target)).splitlines()
    record = json.loads(last)
    assert json.loads(target.read_text()) == record
    assert sum(line.startswith("| ---") for line in above) >= 2
    assert record["machine"]["threads"] == 1 and record["machine"]["torch"]
    return record


def check_results(results: dict[str, dict[str, Any]], *, baseline: str, with_memory: bool = True) -> None:
    for name, own in results.items():
        assert own["tokens_per_second"] > 0 and own["tokens_per_cpu_second"] > 0, name
        assert set(own["speed_over"]) >= {baseline, "floor: linear layers"}, name
        assert name.startswith("floor") or not with_memory or own["memory_mib"] > 0, name
    assert results[baseline]["speed_over"][baseline] == 1


def test_training_is_timed_against_the_baseline_and_the_floor(tmp_path: Path) -> None:
    record = checked("train.py", tmp_path / "train.json")
    for method, our, their in (
        ("masked_diffusion", "unmask", "baseline"),
        ("block_diffusion", "unmask, blocks", "baseline, blocks"),
    ):
        one = record["methods"][method]
        check_results(one["results"], baseline=their, with_memory=False)
        weighed = {name for name, own in one["results"].items() if own.get("memory_mib", 0) > 0}
        assert weighed == ({"unmask, micro_batch_size", "baseline"} if method == "masked_diffusion" else set())
        assert one["losses"][our] == pytest.approx(one["losses"][their], rel=1e-4)
        assert set(one["breakdown"]) >= {our, their}


def test_decoding_is_timed_against_the_baseline_and_the_floor(tmp_path: Path) -> None:
    record = checked("decode.py", tmp_path / "decode.json")
    assert set(record["caches"]) == {"none", "prefix", "dual", "exact"}
    for cache, batches in record["caches"].items():
        for batch in ("1", "2"):
            check_results(batches[batch]["results"], baseline="baseline", with_memory=(cache, batch) == ("none", "1"))
            assert batches[batch]["equal_tokens"]["float64"] == 1
            assert set(batches[batch]["breakdown"]) == ({"unmask", "baseline"} if batch == "1" else set())


def test_each_tier_of_metrics_has_its_cost(tmp_path: Path) -> None:
    target = tmp_path / "metrics_cost.json"
    *above, last = printed(str(FOLDER / "metrics_cost.py"), "--quick", "--json", str(target)).splitlines()
    record = json.loads(last)
    assert json.loads(target.read_text()) == record and "tier 3 every 2000" in above[0]
    (found,) = record["results"]
    assert set(found["share"]) == {"tier 1", "tier 2", "tier 3"}
    assert 0 < found["seconds"]["tier 1"] < found["seconds"]["tier 2"] < found["seconds"]["tier 3"]


def test_linear_layers_are_timed_in_every_order(tmp_path: Path) -> None:
    record = checked("linear.py", tmp_path / "linear.json")
    for found in record["types"].values():
        for own in found["128"].values():
            speeds = own["speed_over_stock"]
            assert set(speeds) == set(own["cpu_milliseconds"]) == {"row by row", "input by input", "packed", "unmask"}
            assert speeds["row by row"] == 1 and min(*speeds.values(), *own["cpu_milliseconds"].values()) > 0


def test_contenders_that_differ_are_refused() -> None:
    code = """
import decode, linear, train

def refused(contender, name, changed, check):
    kept = getattr(contender, name)
    setattr(contender, name, changed)
    try:
        check()
    except AssertionError as error:
        print("refused:", contender.__name__, error)
    setattr(contender, name, kept)
    check()

blocks = train.SECTIONS[train.BLOCKS]
refused(train.Ours, "step", lambda self, number: 7.0, lambda: train.checked_losses(train.QUICK, blocks))
for forwards in (12, 11):
    decoded = [(0,) * 12], forwards
    refused(decode.Ours, "decode", lambda self: decoded, lambda: decode.checked_identity(decode.QUICK, 1))
too_much = lambda self, values: 1.01 * values @ self.weight.T
refused(linear.Packed, "forward", too_much, lambda: linear.measured(128, 1, linear.torch.float32, 1))
"""
    refused = [line.split()[1] for line in printed("-c", code).splitlines() if line.startswith("refused: ")]
    assert refused == ["Ours", "Ours", "Ours", "Packed"]


def test_the_gpu_script_tests_itself_on_a_cpu(tmp_path: Path) -> None:
    target = tmp_path / "gpu.json"
    *above, last = printed(str(FOLDER / "gpu.py"), "--quick", "--json", str(target)).splitlines()
    record = json.loads(last)
    assert json.loads(target.read_text()) == record
    assert sum(line.startswith("| ---") for line in above) >= 6
    assert record["failed"] == []
    assert record["peaks"]["measured"]["bandwidth"] > 0 and record["peaks"]["measured"]["flops"] > 0
    for batch in ("1", "2"):
        found = record["decode"]["tiny"][batch]
        for one in (*found["forwards"].values(), *found["generate"].values()):
            assert one["share"]["measured"] > 0 and one["roofline_milliseconds"]["measured"] > 0
        # 8 tokens in 2 blocks: a separate commit takes one forward more per block.
        forwards = {name: one["forwards"] for name, one in found["generate"].items()}
        assert forwards == {"autoregressive": 8} | {
            f"F={steps} {way}": 2 * steps + extra
            for steps in (1, 2, 4)
            for way, extra in (("fused", 0), ("separate commit", 2))
        }
    dense = record["train"]["tiny"]["dense 64"]
    assert dense["tokens_per_second"] > 0 and dense["mfu"]["measured"] > 0 and dense["rows"] == 2
    assert "skipped" in record["train"]["tiny"]["flex 64"]
    checks = record["checks"]
    for name in ("cached equals uncached", "fused equals unfused", "flex equals sdpa", "cross entropies"):
        assert checks[name]["verdict"] is True, name
    assert "skipped" in checks["compiled equals eager"]
    steps = record["tidar"]["tiny"]["16"]
    assert steps["one token"]["milliseconds"] > 0
    assert all(steps[f"{mode} {draft}"]["milliseconds"] > 0 for mode in ("parallel", "linear") for draft in (4, 8, 16))


def test_the_gpu_script_sees_wrong_logits_and_counts_what_a_forward_takes() -> None:
    code = """
import json, torch, device, gpu_checks, gpu_decode, roofline
bench = device.Bench(torch.device("cpu"), torch.bfloat16, device.toy_sizes(), True, False, float("inf"), {}, None)
cached = gpu_checks.cached_logits
gpu_checks.cached_logits = lambda network, shape, ids_BL: cached(network, shape, ids_BL.roll(1, dims=1))
verdict = gpu_checks.cached_equals_uncached(bench, bench.sizes["tiny"])["verdict"]
bench.case("out", job=lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("16 GiB")))
bench.case("error", job=lambda: (_ for _ in ()).throw(ValueError("no")))
bench.deadline = 0.0
bench.case("late", job=dict)
speeds = {}
for rows in (1, 128):
    for policy in gpu_decode.POLICIES:
        plan = policy.forwards(1024, 4096)[-4 * (policy.steps or 1) - 4 :]
        steady = [roofline.Forward(one.columns, 1024, one.read) for one in plan]
        one_block = steady[-(policy.steps or 1) - (policy.steps is not None and not policy.fused) :]
        tokens = rows * (4 if policy.steps else 1)
        work = [roofline.work(device.SIZES["4b"], rows, each) for each in one_block]
        speeds[f"{rows} {policy.name}"] = tokens / sum(map(roofline.DATA_SHEETS["H200"].seconds, work))
print(json.dumps([verdict, bench.record, bench.failed, speeds]))
"""
    verdict, record, failed, speeds = json.loads(printed("-c", code).splitlines()[-1])
    assert verdict is False
    assert "memory is short" in record["out"]["skipped"] and "time" in record["late"]["skipped"]
    assert record["error"]["failed"] == "ValueError: no" and failed == ["error"]
    # Worked out apart, from the weights (8.04 GB), the keys (144 KiB a token) and the H200's data sheet, with the head
    # for every column of every forward; the script counts it where it is read.
    by_hand = {
        "1 autoregressive": 586,
        "1 F=4 separate commit": 468,
        "1 F=4 fused": 585,
        "1 F=2 fused": 1170,
        "1 F=1 fused": 2340,
        "128 autoregressive": 22304,
        "128 F=4 fused": 19319,
        "128 F=1 fused": 57146,
    }
    all_read = {"1 autoregressive", "1 F=4 fused", "1 F=2 fused", "1 F=1 fused", "128 autoregressive"}
    for name, speed in by_hand.items():
        assert speeds[name] == pytest.approx(speed, rel=0.005 if name in all_read else 0.05), name


@pytest.mark.slow
def test_the_tidar_run_tests_itself_on_a_cpu(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    words = [" ".join(f"word{(seed * 7 + at * at) % 97}" for at in range(60)) for seed in range(60)]
    text.write_text("".join(json.dumps({"text": one}) + "\n" for one in words))
    target = tmp_path / "tidar.json"
    options = ["--quick", "--text", str(text), "--output-dir", str(tmp_path / "runs"), "--json", str(target)]
    record = json.loads(printed(str(FOLDER / "tidar_run.py"), *options).splitlines()[-1])
    assert json.loads(target.read_text()) == record
    assert [one["model"] for one in record["likelihood"]] == ["english-ar", "english-tidar"]
    greedy = [one for one in record["results"] if one["temperature"] == 0 and one["mode"] != "autoregressive"]
    assert {(one["mode"], one["draft"]) for one in greedy} == {
        (mode, draft) for mode in ("parallel", "linear") for draft in (1, 2, 4, 8, 16)
    }
    for one in greedy:
        assert one["equal_texts"] == 1 and 1 <= one["tokens_per_step"] <= one["draft"]
    assert target.with_suffix(".csv").read_text().count("\n") == len(record["results"]) + 1
