"""The task definitions over the shared data, and the small models that are asked."""

import functools
from pathlib import Path

from unmask.models import loading
from unmask.settings.objective import ObjectiveSettings

TASKS = Path(__file__).parent / "tasks"
SIZES = {
    "offline_hellaswag": 10042,
    "offline_arc_easy": 2376,
    "offline_arc_challenge": 1172,
    "offline_piqa": 1838,
    "offline_winogrande": 1267,
    "offline_lambada": 5153,
    "offline_gsm8k": 1319,
}


def write_mmlu(folder: Path, subjects: list[str]) -> None:
    """One task for each subject, and the group of them, as the public ones are defined."""
    for subject in subjects:
        lines = [
            f"include: {TASKS / '_mmlu_subject.yaml'}",
            f"task: offline_mmlu_{subject}",
            f"dataset_kwargs: {{subject: {subject}}}",
            "description: |+",
            f"  The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.",
            "",
            "",
        ]
        (folder / f"offline_mmlu_{subject}.yaml").write_text("\n".join(lines))
    members = ", ".join(f"offline_mmlu_{subject}" for subject in subjects)
    (folder / "offline_mmlu.yaml").write_text(
        f"group: offline_mmlu\ntask: [{members}]\naggregate_metric_list:\n"
        "  - {metric: acc, weight_by_size: true}\nmetadata: {version: 2}\n"
    )


@functools.cache
def write_diffusion_model(source: Path, folder: Path) -> Path:
    """A trained autoregressive checkpoint with a mask token: a masked-diffusion model that knows little."""
    made = loading.adapted(loading.load(source, device="cpu"), ObjectiveSettings(method="masked_diffusion"))
    folder.mkdir()
    loading.save(made, folder)
    return folder
