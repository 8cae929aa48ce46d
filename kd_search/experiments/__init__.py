"""Experiments of several trainings: single runs, runs side by side, tables of what came out."""

from kd_search.experiments.metrics import METRICS, pick_metrics
from kd_search.experiments.rows import Networks, Row, choose_rows, config_value
from kd_search.experiments.run_folder import (
    RESULT_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    SettingsError,
    build_run_config,
    iterations_done,
    read_result,
    settings_of,
)
from kd_search.experiments.runs import Run, RunFailed, run_all
from kd_search.experiments.single_run import evaluate_on, load_trained_run, train_and_evaluate
from kd_search.experiments.study import (
    Study,
    add_run_options,
    carry_out,
    check_run_options,
    schedule,
)
from kd_search.experiments.table import (
    BASE,
    TEACHER,
    TableLayout,
    draw,
    markdown,
    markdown_grid,
    markdown_line,
    spread,
    summarise,
    write_all,
    write_text,
)
