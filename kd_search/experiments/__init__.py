"""Studies of several trainings: single runs, runs side by side, tables of their results."""

from kd_search.experiments.results_file import StudyFile, read_study, write_study
from kd_search.experiments.run_facts import METRICS, TEST_MS, pack_queries, unpack_queries
from kd_search.experiments.run_folder import (
    RESULT_FILE,
    SETTINGS_FILE,
    WEIGHTS_FILE,
    SettingsError,
    build_run_config,
    evaluate_on,
    iterations_done,
    load_trained_run,
    pick_metrics,
    read_result,
    settings_of,
    train_and_evaluate,
)
from kd_search.experiments.runs import Run, RunFailed, run_all
from kd_search.experiments.study import (
    Row,
    Study,
    choose_names,
    choose_rows,
    config_value,
    run_study,
    schedule,
    student_arch,
    student_runs,
    study_metadata,
    teacher_opts,
    teacher_run,
)
from kd_search.experiments.study_options import Networks, StudyParser, study_command
from kd_search.experiments.table import (
    BASE,
    TEACHER,
    TableLayout,
    draw,
    markdown,
    markdown_cell,
    markdown_interval,
    markdown_table,
    seed_interval,
    spread,
    summarise,
    write_figure,
    write_text,
)
from kd_search.experiments.tuning import finished_study
