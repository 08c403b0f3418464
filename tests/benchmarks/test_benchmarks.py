"""The benchmark runs end to end on one tiny case; its ratios say what the numbers say."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import agreement, contenders, machine, memory, pairwise, ratios, report, run, timing
from benchmarks.results import Results, path_of
from lpips_lightning.backbones.definition import BACKBONES
from lpips_lightning.backbones.extractor import random_backbone
from lpips_lightning.io.image_files import write_image
from lpips_lightning.weights import tensors_sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "machine.json"


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")


def test_a_run_measures_all_contenders_and_writes_json_markdown_and_image(out, capsys):
    tiny = ["--nets", "squeeze", "--sizes", "1x32", "--rounds", "2", "--threads", str(torch.get_num_threads())]
    run.main([*tiny, "--parts", "timing", "--device", "cpu", "--out", str(out)])
    data = json.loads(out.read_text())
    rows = data["timing"]
    names = {(row["contender"], row["setting"], row["work"]) for row in rows}
    fp32 = [(name, "fp32") for name in ("floor", "ours", "lpips", "torchmetrics")]
    expected = {(*who, work) for who in (*fp32, ("floor", "bf16"), ("ours", "bf16")) for work in ("forward", "step")}
    assert names == expected
    weights = contenders.weights_name("squeeze")
    assert weights.startswith("random sha256:")
    for row in rows:
        assert row["weights"] == weights
        assert row["wall_s"] > 0 and row["cpu_s"] > 0 and len(row["rounds_wall_s"]) == 2
        if row["setting"] == "fp32" and row["contender"] != "floor":
            assert row["distance_error"] < 1e-4
            assert row["work"] == "forward" or row["gradient_cosine"] > 0.9999
    assert data["machine"]["threads"] == torch.get_num_threads()
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    text = out.with_suffix(".md").read_text()
    assert "| squeeze 1x32 step |" in text and data["machine"]["cpu"] in text
    assert f"- weights: squeeze {weights} (timing)" in text
    said = capsys.readouterr().out
    assert "squeeze 1x32 step, ms: floor fp32" in said and f"weights: squeeze {weights}" in said


@pytest.fixture
def forgetful():
    """The weights are looked for anew, now and afterwards."""
    contenders.backbone_tensors.cache_clear()
    contenders.weights_name.cache_clear()
    yield
    contenders.backbone_tensors.cache_clear()
    contenders.weights_name.cache_clear()


def test_weights_of_this_machine_are_used_and_named(tmp_path, monkeypatch, forgetful):
    tensors = random_backbone(BACKBONES["squeeze"], seed=5)
    save_file(tensors, tmp_path / "squeezenet1_1.safetensors")
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(tmp_path))
    used = contenders.backbone_tensors("squeeze")
    assert all(torch.equal(used[name], tensor) for name, tensor in tensors.items())
    assert contenders.weights_name("squeeze") == f"custom sha256:{tensors_sha256(tensors)[:12]}"
    assert contenders.weights_name("embedded").startswith("embedded sha256:")


@pytest.mark.real
def test_the_real_backbones_are_used_and_named(real_weights, monkeypatch, forgetful):
    monkeypatch.setenv("LPIPS_LIGHTNING_WEIGHTS", str(real_weights))
    assert contenders.weights_name("alex") == "IMAGENET1K_V1 sha256:195266a4c8e9"
    assert contenders.weights_name("vgg").endswith(" sha256:e7a5a0521f65")


def test_random_weights_have_the_hash_that_is_recorded(forgetful):
    tensors = contenders.backbone_tensors("squeeze")
    assert contenders.weights_name("squeeze") == f"random sha256:{tensors_sha256(tensors)[:12]}"


def test_the_tables_of_deviations_name_weights_and_hold_what_readme_says(tmp_path, capsys):
    noise = torch.randint(256, (3, 230, 230), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_image(noise, tmp_path / "a.png")
    threads = torch.get_num_threads()
    try:
        agreement.main(["--folder", str(tmp_path), "--nets", "squeeze"])
    finally:
        torch.set_num_threads(threads)
    _, weights, *lines = capsys.readouterr().out.splitlines()
    assert weights == f"squeeze {contenders.weights_name('squeeze')}"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| squeeze")]
    found = {what: [float(value) if value else None for value in values] for _, what, *values in cells[:4]}
    assert list(found) == ["value", "layers", "map", "gradient"]
    for what, (ours, _, _, ours64, theirs64) in found.items():
        assert ours64 < 1e-10
        assert ours < (1e-5 if what != "gradient" else 0.03)
        assert (theirs64 is None) == (what in ("layers", "map"))
    assert len(cells[4:]) == 3 and all(0 < float(error) < 1e-2 for row in cells[4:] for error in row[2:])


def test_folders_without_fitting_photographs_are_one_sentence(tmp_path, capsys):
    for wrong in ("folder with PNG files, got", "images of at least 228 x 228 pixels, got .*small.png"):
        with pytest.raises(SystemExit):
            agreement.main(["--folder", str(tmp_path)])
        assert re.search(f"error: folder: expected (a )?{wrong}", capsys.readouterr().err)
        write_image(torch.zeros(3, 64, 64, dtype=torch.uint8), tmp_path / "small.png")


def test_rows_from_before_say_that_their_weights_were_not_recorded():
    rows = [row("ours", "fp32", 1.0), row("lpips", "fp32", 1.0, weights="random sha256:abc")]
    lines = report._weights({"machine": {}, "timing": rows, "memory": rows[:1]})
    assert lines == ["- weights: vgg not recorded (timing, memory)", "- weights: vgg random sha256:abc (timing)"]


def test_contenders_that_do_not_compute_the_same_are_an_error():
    def wrong(name, factor):
        def forward(x, y):
            return factor * (x - y).square().mean()

        return contenders.Contender(name, "fp32", lambda images: images, forward, forward)

    pair = [wrong("ours", 1.0), wrong("lpips", 1.1)]
    with pytest.raises(RuntimeError, match="ours: expected the distance of lpips"):
        timing.time_case(pair, "forward", 1, 32, torch.device("cpu"), rounds=1, seconds=1.0)


def test_all_pairs_take_one_pass_an_image_and_the_loop_two_a_pair():
    ours, theirs = pairwise.compare("squeeze", 4, 32, torch.device("cpu"))
    assert (ours["backbone_passes"], theirs["backbone_passes"]) == (4, 12)
    assert ours["wall_s"] > 0 and theirs["cpu_s"] > 0


@on_linux
@pytest.mark.slow
def test_peak_memory_is_that_of_the_work_in_another_process():
    # 2 images of 256 pixels: 16 MiB of relu1 each in float32, and the floor keeps those of one at least.
    row = memory.measure("floor", "fp32", "squeeze", 4, 256, "step", torch.device("cpu"))
    assert 16 < row["peak_mib"] < 400
    assert row["inputs_mib"] == 6.0


def test_a_memory_measurement_that_fails_is_an_error(monkeypatch):
    killed = subprocess.CompletedProcess([], -9, "", "Killed")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: killed)
    with pytest.raises(RuntimeError, match=r"floor fp32 vgg 1 64 step .* got exit status -9\nKilled"):
        memory.measure("floor", "fp32", "vgg", 1, 64, "step", torch.device("cpu"))


def test_there_is_no_contender_where_a_peer_knows_no_such_net():
    cpu = torch.device("cpu")
    assert contenders.contender("piq", "fp32", "alex", cpu) is None
    assert contenders.contender("lpips", "fp32", "embedded", cpu) is None
    assert contenders.contender("lpips", "bf16", "squeeze", cpu) is None
    assert contenders.contender("floor", "fp32", "embedded", cpu).label == "floor fp32"


CASE = {"net": "alex", "batch": 4, "side": 256, "work": "step"}


def test_a_case_is_replaced_as_a_whole_and_other_machines_are_refused(out):
    case = CASE
    machine = {"cpu": "one", "threads": 2}
    results = Results(out, machine)
    assert results.opening().endswith("machine.json: a new file")
    results.put("timing", case, [{"contender": "ours"}, {"contender": "lpips"}])
    results.put("timing", case | {"side": 64}, [{"contender": "ours"}])
    Results(out, machine).put("timing", case, [{"contender": "floor"}])
    rows = json.loads(out.read_text())["timing"]
    assert [(row["side"], row["contender"]) for row in rows] == [(64, "ours"), (256, "floor")]
    with pytest.raises(ValueError, match=r"machine.json: expected results of this machine, got .* differs in threads"):
        Results(out, machine | {"threads": 4})
    assert "cases are added, or replace those of the same name" in Results(out, machine).opening()


def test_other_versions_replace_case_by_case_and_rows_from_before_say_theirs(out):
    first = {"device": "cpu", "cpu": "one", "threads": 2, "torch": "2.6", "piq": "0.8"}
    results = Results(out, first)
    for side in (64, 128, 256):
        results.put(
            "timing", CASE | {"side": side}, [{"contender": "ours", "setting": "fp32", "wall_s": 1, "cpu_s": 1}]
        )
    second = Results(out, first | {"torch": "2.7"})
    assert "other versions (torch 2.6 -> 2.7)" in second.opening() and "3 rows from before" in second.opening()
    second.put("timing", CASE, [{"contender": "ours"}])
    third = Results(out, first | {"torch": "2.8", "piq": "0.9"})
    third.put("timing", CASE | {"side": 128}, [{"contender": "ours"}])
    data = json.loads(out.read_text())
    assert data["machine"] == first | {"torch": "2.8", "piq": "0.9"}
    assert {row["side"]: row.get("other_versions") for row in data["timing"]} == {
        64: {"torch": "2.6", "piq": "0.8"},
        128: None,
        256: {"torch": "2.7", "piq": "0.8"},
    }
    # The first versions again: what was measured with them needs no word.
    back = Results(out, first).data["timing"]
    assert {row["side"]: row.get("other_versions") for row in back} == {
        64: None,
        128: {"torch": "2.8", "piq": "0.9"},
        256: {"torch": "2.7"},
    }
    lines = report._other_versions(data)
    assert lines == [
        "- with piq 0.8, torch 2.6: timing alex 4x64 step",
        "- with piq 0.8, torch 2.7: timing alex 4x256 step",
    ]


EPYC = {"vendor_id": "AuthenticAMD", "cpu family": "25", "model": "1", "model name": "AMD EPYC"}
XEON = {"cpu family": "6", "model": "143", "model name": "Intel(R) Xeon(R) Platinum 8480+ CPU @ 2.00GHz"}
RYZEN = {"cpu family": "23", "model": "113", "model name": "AMD Ryzen 9 3900X 12-Core Processor"}


@pytest.mark.parametrize(
    ("info", "threads", "name"),
    [
        (EPYC | {"flags": "fma avx2"}, 2, "amd-epyc-family-25-model-1-avx2-2-threads"),
        (EPYC | {"model": "17", "flags": "avx2 avx512f"}, 2, "amd-epyc-family-25-model-17-avx512-2-threads"),
        (
            XEON | {"flags": "avx2 avx512f amx_bf16"},
            8,
            "intel-xeon-platinum-8480-family-6-model-143-avx512-amx-8-threads",
        ),
        (RYZEN | {"flags": "avx2"}, 1, "amd-ryzen-9-3900x-family-23-model-113-avx2-1-thread"),
        # aarch64 has no names, and "Features" for flags.
        (
            {"CPU implementer": "0x41", "CPU part": "0xd40", "Features": "fp asimd sve bf16"},
            4,
            "aarch64-implementer-0x41-part-0xd40-sve-4-threads",
        ),
    ],
)
def test_results_are_named_by_what_tells_processors_apart(info, threads, name, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(machine, "_cpu_info", lambda: info)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert machine.slug(machine.describe(torch.device("cpu"))) == name


@pytest.mark.parametrize(
    ("system", "said", "brand", "capability", "name"),
    [
        ("darwin", "arm", "Apple M2 Pro\n", "DEFAULT", "apple-m2-pro-2-threads"),
        ("darwin", "i386", OSError, "AVX2", "i386-avx2-2-threads"),
        (
            "win32",
            "Intel64 Family 6 Model 154 Stepping 3, GenuineIntel",
            OSError,
            "AVX512",
            "intel64-family-6-model-154-stepping-3-genuineintel-avx512-2-threads",
        ),
        ("win32", "", OSError, "DEFAULT", "arm64-2-threads"),
    ],
)
def test_where_the_system_lists_no_processor_other_sources_say_it(system, said, brand, capability, name, monkeypatch):
    def sysctl(*args, **kwargs):
        if brand is OSError:
            raise OSError("no sysctl")
        return subprocess.CompletedProcess(args, 0, brand, "")

    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "processor", lambda: said)
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine, "_cpu_info", dict)
    monkeypatch.setattr(machine.subprocess, "run", sysctl)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert machine.slug(machine.describe(torch.device("cpu"))) == name


def test_machines_of_one_name_get_files_of_their_own(tmp_path):
    first = {"device": "cpu", "cpu": "AMD EPYC (family 26, model 2)", "cpu_flags": ["avx2"], "threads": 2, "cores": 2}
    second, third = first | {"cores": 64}, first | {"cpu_flags": ["avx2", "bf16"]}
    names = []
    for described in (first, second, third, first | {"torch": "2.7"}, second, third):
        path = path_of(tmp_path, described)
        Results(path, described).put("timing", CASE, [])
        names.append(path.name.removeprefix("amd-epyc-family-26-model-2-avx2-2-threads"))
    assert names == [".json", "-2.json", "-3.json", ".json", "-2.json", "-3.json"]


def test_every_results_file_bears_its_machines_name():
    files = sorted((ROOT / "tests" / "benchmarks" / "results").glob("*.json"))
    assert len(files) >= 1
    for file in files:
        name = machine.slug(json.loads(file.read_text())["machine"])
        assert re.fullmatch(re.escape(name) + r"(-\d+)?", file.stem)
        assert file.with_suffix(".md").is_file() and file.with_suffix(".png").is_file()


def test_without_proc_the_memory_of_a_cpu_is_left_out(monkeypatch, out, capsys):
    monkeypatch.setattr(memory, "is_measurable", lambda device: False)
    run.main(["--parts", "memory", "huge", "--device", "cpu", "--out", str(out)])
    said = capsys.readouterr().out
    assert "memory: left out" in said and "huge: left out" in said and not out.exists()


def test_a_size_is_written_as_images_and_side(capsys):
    with pytest.raises(SystemExit):
        run.main(["--sizes", "256"])
    assert "expected a number of images and a side like 4x256, got '256'" in capsys.readouterr().err


def row(contender, setting, seconds, net="vgg", batch=4, side=256, work="step", **more):
    where = {"net": net, "batch": batch, "side": side, "work": work, "date": "2026-11-21", "commit": "abc"}
    rounds = [seconds, 2 * seconds, 9 * seconds]  # a slow round is slow for everybody
    times = {f"rounds_{by}_s": rounds for by in ("wall", "cpu")} | {"wall_s": 2 * seconds, "cpu_s": 2 * seconds}
    return where | {"contender": contender, "setting": setting} | times | more


def results_of(device, **parts):
    flags = ["avx2", "amx_bf16"]
    machine = {"device": device, "cpu": "a cpu", "cpu_flags": flags, "threads": 2, "torch": "2.6", "cores": 2}
    return {"machine": machine, **parts}


def found(data):
    return {check.what: check for some in ratios.checks(data, "cpu").values() for check in some}


def test_ratios_on_a_cpu_are_held_against_the_goals():
    good = {"distance_error": 0.002, "gradient_cosine": 0.97}
    timing_rows = [
        row("floor", "fp32", 1.0),
        row("ours", "fp32", 1.07),
        row("lpips", "fp32", 1.8),
        row("piq", "fp32", 1.7),
        row("ours", "bf16", 0.2, **good),
        row("ours", "fp32", 1.0, side=64, batch=16),
        row("lpips", "fp32", 1.1, side=64, batch=16),
    ]
    checks = found(results_of("cpu", timing=timing_rows))
    faster = checks["vgg 4x256 step (piq)"]  # the last of that name is bfloat16's
    assert (faster.value, faster.goal, faster.met) == (pytest.approx(8.5), 5.0, True)
    by_heading = ratios.checks(results_of("cpu", timing=timing_rows), "cpu")
    first, small = by_heading["float32, times faster than the fastest peer"]
    assert (first.value, first.goal, first.met) == (pytest.approx(1.7 / 1.07), 1.6, False)
    assert (small.goal, small.met) == (1.0, True)
    assert checks["vgg 4x256 step, fp32"].met
    assert checks["vgg 4x256 step: relative error of d"].met
    assert not checks["vgg 4x256 step: cosine of the gradient"].met


def test_without_amx_the_bfloat16_goal_is_not_asked():
    data = results_of("cpu", timing=[row("lpips", "fp32", 1.0), row("ours", "bf16", 0.5, distance_error=0.0)])
    data["machine"]["cpu_flags"] = ["avx2"]
    assert found(data)["vgg 4x256 step (lpips)"].met is None


def test_memory_huge_images_and_all_pairs_are_held_against_the_goals():
    sizes = {"inputs_mib": 96.0, "once_wall_s": 1.0}
    data = results_of(
        "cpu",
        memory=[
            row("ours", "fp32", 1, peak_mib=200.0, inputs_mib=6.0, once_wall_s=1.0, once_cpu_s=1.0),
            row("lpips", "fp32", 1, peak_mib=1000.0, inputs_mib=6.0, once_wall_s=1.0, once_cpu_s=1.0),
            row("ours", "fp32", 1, batch=1, side=2048, work="forward", peak_mib=312.0, once_cpu_s=1.1, **sizes),
            row("ours whole", "fp32", 1, batch=1, side=2048, work="forward", peak_mib=9e3, once_cpu_s=1.0, **sizes),
        ],
        pairwise=[
            row("ours", "fp32", 1.0, batch=64, side=64, work="pairwise", backbone_passes=64.0),
            row("lpips", "fp32", 19.0, batch=64, side=64, work="pairwise", backbone_passes=4032),
        ],
    )
    checks = found(data)
    assert checks["vgg 4x256 step, 200 of 1000 MiB (lpips)"].met
    whole = checks["vgg 1x2048 forward, ours fp32, with the images"]
    assert (whole.value, whole.goal, whole.met) == (408.0, 400.0, False)
    assert not checks["vgg 1x2048 forward, time over that without bounds"].met
    assert not checks["vgg, 64 images of 64, times faster"].met
    assert checks["vgg, 64 images of 64, backbone passes (lpips: 4032)"].met


def test_ratios_on_a_gpu_are_held_against_the_goals(out):
    rows = [
        row(name, setting, seconds, batch=16, distance_error=0.0, gradient_cosine=1.0)
        for name, setting, seconds in (
            ("floor", "tf32", 1.0),
            ("lpips", "fp32", 3.0),
            ("lpips", "tf32", 2.0),
            ("ours", "fp32", 1.9),
            ("ours", "tf32", 1.6),
            ("ours", "bf16", 0.3),
        )
    ]
    kernel = {"net": "vgg", "batch": 16, "side": 256, "work": "head", "dtype": "bf16", "kernel": "sum", "date": "today"}
    data = results_of("cuda", timing=rows, head=[kernel | {"shape": "all layers", "fraction": 0.59}])
    by_heading = ratios.checks(data, "wall")
    values = {heading: checks[0] for heading, checks in by_heading.items()}
    assert values["fp32, times faster than the fastest peer"].met
    assert not values["tf32, times faster than the fastest peer"].met
    documented = values["ours under bf16 autocast, against lpips as documented"]
    assert (documented.value, documented.met) == (pytest.approx(2 / 0.3), True)
    assert not values["head kernel"].met
    report.write_report(data, out.with_suffix(".md"))
    assert "**not met**" in out.with_suffix(".md").read_text()


def test_the_script_prints_the_ratios(out):
    out.write_text(json.dumps(results_of("cpu", timing=[row("ours", "fp32", 1.0), row("lpips", "fp32", 1.7)])))
    script = ROOT / "tests" / "benchmarks" / "ratios.py"
    done = subprocess.run([sys.executable, script, out], capture_output=True, text=True, check=True)
    line = "  vgg 4x256 step (lpips) 1.7x >= 1.6x met"
    assert line.split() in [printed.split() for printed in done.stdout.splitlines()]
    assert done.stdout.splitlines()[-1] == "1 of 1 goals met"
