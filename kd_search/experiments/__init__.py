"""Experiments of several trainings: single runs, runs side by side, tables of what came out."""

from kd_search.experiments.metrics import METRICS, pick_metrics
from kd_search.experiments.options import (
    add_network_options,
    add_run_options,
    check_run_options,
    fill_in_set,
    study_parser,
)
from kd_search.experiments.planning import (
    facts_of,
    schedule,
    student_arch,
    student_runs,
    teacher_run,
)
from kd_search.experiments.rows import Networks, Row, TermsRow, choose_rows, config_value
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
from kd_search.experiments.study import Study, carry_out
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
