"""The child process of a command: how it ends, by a signal, an abort or an error, and what is said of that."""

import argparse
import fcntl
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.tiny_nets import OURS, listing, make_run, run_command

from multilabel_softmax_loss.__main__ import main
from multilabel_softmax_loss.commands.child import last_words, run_reporting
from multilabel_softmax_loss.commands.scratch import scratch_folder
from multilabel_softmax_loss.commands.terminal import Lasting, printing_aside

START = "python -m multilabel_softmax_loss train: error: "

# Ctrl-C as one of the command's processes comes to import a module; "" is the very beginning of that process.
INTERRUPTING_SITE = """
import os, signal, sys, time

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT_MODULE"]:
            interrupt()

def interrupt():
    (os.killpg if os.environ["TO"] == "all" else os.kill)(command, signal.SIGINT)
    while signal.SIGINT not in signal.sigpending():  # it waits for its turn, or ends this process here
        time.sleep(0.001)

role = "child" if "COMMAND" in os.environ else "command"
command = int(os.environ.setdefault("COMMAND", str(os.getpid())))
if role == os.environ["IN_PROCESS"]:
    sys.meta_path.insert(0, Interrupting())
    if not os.environ["AT_MODULE"]:
        interrupt()
"""


ASKED_TWICE = """
import os, signal, time
from multilabel_softmax_loss.errors import end_interrupted

def end(status):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)
    os._exit(status)

signal.signal(signal.SIGINT, lambda *_: end_interrupted("train", end))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_child_that_hears_of_ctrl_c_twice_tells_it_once():
    ended = subprocess.run([sys.executable, "-c", ASKED_TWICE], stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (130, f"{START[:-7]}interrupted before there was anything to keep.\n")


@pytest.mark.parametrize(
    "process, module", [("command", "numpy"), ("child", ""), ("child", "numpy"), ("child", "caffe._caffe")]
)
@pytest.mark.parametrize("to", ["all", "the command alone"])
def test_ctrl_c_at_the_start_is_told_and_leaves_nothing(tmp_path, tmp_path_factory, process, module, to):
    make_run(tmp_path, max_iter=100000)
    before = listing(tmp_path)
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(INTERRUPTING_SITE)
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    ended = subprocess.run(
        [sys.executable, "-m", "multilabel_softmax_loss", "train", "solver.prototxt", "--out", "run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "IN_PROCESS": process, "AT_MODULE": module, "TO": to},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=600,
    )
    assert (ended.returncode, ended.stdout) == (130, f"{START[:-7]}interrupted before there was anything to keep.\n")
    assert listing(tmp_path) == before


def test_ctrl_c_as_the_child_has_just_ended_changes_nothing(monkeypatch, capfd):
    def waiting(process, flags, wait=os.waitpid):
        ended = wait(process, flags)
        os.kill(os.getpid(), signal.SIGINT)
        return ended

    monkeypatch.setattr(os, "waitpid", waiting)
    assert main(["train", "absent.prototxt"]) == 2
    assert "absent.prototxt" in capfd.readouterr().err


def test_a_full_disk_is_told_in_a_sentence(capsys):
    def run(arguments):
        raise OSError(28, "No space left on device", "scores.json")

    assert run_reporting(run, argparse.Namespace(command="evaluate")) == 2
    expected = "evaluate: error: [Errno 28] No space left on device: 'scores.json'.\n"
    assert capsys.readouterr().err == f"python -m multilabel_softmax_loss {expected}"


@pytest.mark.parametrize(
    "said, hint",
    [
        (
            "db_leveldb.hpp:19] Check failed: ok Corruption: corrupted compressed block contents",
            "without Snappy: write",
        ),
        ("io.cpp:69] Check failed: proto.SerializeToOstream(&output) ", "the disk is full, or"),
    ],
)
def test_what_caffe_says_is_explained_where_its_words_mislead(said, hint, tmp_path):
    (tmp_path / "caffe.log").write_text(f"F20261122 00:55:14.266420  6134 {said}\n")
    assert hint in last_words(str(tmp_path / "caffe.log"), -6)


def test_a_name_that_is_no_utf_8_is_told_in_a_sentence(capsys):
    def run(arguments):
        import caffe

        caffe.Net(os.fsdecode(b"caf\xe9.prototxt"), caffe.TEST)

    assert run_reporting(run, argparse.Namespace(command="evaluate")) == 2
    assert (
        "evaluate: error: 'caf\\udce9.prototxt' is no UTF-8; expected that of names, and a" in capsys.readouterr().err
    )


def test_a_warning_is_a_sentence_without_its_source(tmp_path):
    solver = make_run(tmp_path, loss=OURS % '{"label_format": "indices"}', max_iter=2, test=False)
    process = run_command("train", solver, "--out", "run", folder=tmp_path, check=0)
    start = "python -m multilabel_softmax_loss train: warning: MultilabelSoftmaxLossLayer: param_str has label_format"
    assert process.stderr.startswith(start)
    assert process.stderr.endswith('Labels of 0 and 1 per class need label_format "dense".\n')


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        pytest.param("train_val.prototxt", '"ReLU"', '"ReLV"', "Unknown layer type: ReLV", id="layer type"),
        pytest.param("solver.prototxt", '"Adam"', '"Adamm"', "Unknown solver type: Adamm", id="solver type"),
    ],
)
def test_a_native_abort_is_a_sentence_with_caffes_reason(tmp_path, name, old, new, message):
    make_run(tmp_path)
    (tmp_path / name).write_text((tmp_path / name).read_text().replace(old, new))
    before = listing(tmp_path)
    process = run_command("train", "solver.prototxt", "--out", "run", folder=tmp_path, check=2)
    assert process.stdout == ""
    assert process.stderr.startswith("python -m multilabel_softmax_loss train: error: Caffe stopped, since ")
    assert message in process.stderr
    assert len(process.stderr.splitlines()) == 1
    assert listing(tmp_path) == before
    assert not (tmp_path / "run").exists()


EXITS = """import caffe, sys

class Exits(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        pass

    def forward(self, bottom, top):
        sys.exit(0)
"""


@pytest.mark.parametrize(
    "module, message",
    [
        pytest.param(EXITS, "a Python layer called sys.exit(0) (", id="in forward"),
        pytest.param(EXITS.replace("        pass", "        sys.exit()", 1), "called sys.exit(None) (", id="in setup"),
        pytest.param(f"import sys; sys.exit(7)\n{EXITS}", "SystemExit: 7 (exits.py, line 1)", id="in its module"),
        pytest.param(f"1 / 0\n{EXITS}", "ZeroDivisionError: division by zero (exits.py, line 1)", id="error"),
        pytest.param("class Exits:\npass", "(exits.py, line 2)", id="syntax"),
    ],
)
def test_a_layer_that_ends_the_program_or_does_not_import_is_told_and_status_2(tmp_path, run_here, module, message):
    solver = make_run(tmp_path, test=False)
    (tmp_path / "exits.py").write_text(module)
    net = tmp_path / "train_val.prototxt"
    watch = 'layer { name: "w" type: "Python" bottom: "label" python_param { module: "exits" layer: "Exits" } }\n'
    net.write_text(net.read_text() + watch)
    sys.modules.pop("exits", None)
    said = run_here("train", solver, "--out", "run", folder=tmp_path, check=2).stderr
    assert said.startswith("python -m multilabel_softmax_loss train: error: ")
    assert message in said
    assert len(said.splitlines()) == 1


def test_what_nobody_foresaw_in_a_layer_is_shown_with_its_place_and_status_2(tmp_path):
    solver = make_run(tmp_path, test=False)
    (tmp_path / "breaks.py").write_text(
        "import caffe\nclass Breaks(caffe.Layer):\n"
        "    def setup(self, bottom, top): pass\n    def reshape(self, bottom, top): pass\n"
        "    def forward(self, bottom, top): self.helper()\n    def backward(self, *arguments): pass\n"
    )
    net = tmp_path / "train_val.prototxt"
    watch = 'layer { name: "w" type: "Python" bottom: "label" python_param { module: "breaks" layer: "Breaks" } }\n'
    net.write_text(net.read_text() + watch)
    process = run_command("train", solver, "--out", "run", folder=tmp_path, check=2)
    assert 'breaks.py", line 5, in forward' in process.stderr
    assert process.stderr.endswith("AttributeError: 'Breaks' object has no attribute 'helper'\n")


TESTS = Path(__file__).resolve().parent.parent
ENDINGS = [sys.executable, str(TESTS / "support" / "endings.py")]


def ending(*words, **options):
    """The finished process of a command whose child ends so."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    options["env"] = {**os.environ, "PYTHONPATH": path, **options.get("env", {})}
    shell = {"shell": True, "executable": "/bin/bash"} if "args" in options else {"args": [*ENDINGS, *words]}
    return subprocess.run(**{"capture_output": True, "text": True, "timeout": 60, **shell, **options})


@pytest.mark.parametrize(
    "how, words",
    [
        pytest.param("exit 0", "ended the process with status 0, as os._exit() does", id="os._exit(0)"),
        pytest.param("exit 130", "ended the process with status 130", id="os._exit(130)"),
        pytest.param("signal SIGKILL", "signal 9 (SIGKILL), as the system sends where memory is short", id="SIGKILL"),
        pytest.param("signal SIGBUS", "(SIGBUS): a file that it was reading became shorter", id="SIGBUS"),
        pytest.param("signal SIGXCPU", "(SIGXCPU): the limit of processor time is reached", id="SIGXCPU"),
        pytest.param("signal SIGILL", "Caffe died of signal 4 (SIGILL)", id="SIGILL"),
        pytest.param("raise MemoryError", "the memory does not suffice", id="MemoryError"),
    ],
)
def test_every_death_of_the_child_is_a_sentence_and_status_2(how, words):
    process = ending(how)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(START)
    assert words in process.stderr
    assert len(process.stderr.splitlines()) == 1


def test_another_folder_for_temporary_files_is_no_death():
    process = ending("temporary /nowhere")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


def test_a_keyboard_interrupt_of_a_layer_is_its_own_error():
    process = ending("raise KeyboardInterrupt")
    assert process.returncode == 2
    assert process.stderr.endswith("KeyboardInterrupt: by a layer\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_any_command_with_status_130(number):
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    pipes["preexec_fn"] = lambda: signal.signal(number, signal.SIG_DFL)  # nohup would have it ignored
    process = subprocess.Popen([*ENDINGS, "sleep"], env={**os.environ, "PYTHONPATH": path}, **pipes)
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    assert process.communicate(timeout=10)[0] == f"{START[:-7]}interrupted before there was anything to keep.\n"
    assert process.returncode == 130


def test_environments_that_hide_reasons_or_make_errors_of_warnings_do_not_reach_the_child():
    changed = {"GLOG_minloglevel": "4", "GLOG_log_dir": "/nowhere", "PYTHONWARNINGS": "error", "TQDM_NCOLS": "x"}
    process = ending("environment", env=changed)
    assert (process.returncode, process.stdout) == (0, "GLOG_minloglevel=2\n")


def test_last_words_for_which_there_is_no_room_are_told():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "multilabel_softmax_loss", "--version"]
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    told = "python -m multilabel_softmax_loss: error: the standard output cannot be written: No space left on device.\n"
    assert (process.returncode, process.stderr) == (2, told)


def test_a_file_that_hides_a_module_of_python_is_named(tmp_path):
    (tmp_path / "argparse.py").write_text("x = 1")
    process = run_command("snippet", folder=tmp_path, check=2)
    named = f"{tmp_path}/argparse.py hides the module 'argparse' of Python itself: rename it, or start from another"
    assert named in process.stderr.splitlines()[-1]


def test_a_layer_of_ours_that_cannot_be_loaded_is_not_said_to_be_unknown(monkeypatch):
    import multilabel_softmax_loss as package

    monkeypatch.setitem(package.ON_DEMAND, "Layer", "param_str")  # where an import fails by an AttributeError, too
    with pytest.raises(ImportError, match="Layer cannot be loaded: module .* has no attribute 'Layer'"):
        _ = package.Layer


def test_a_start_from_a_folder_that_is_gone_is_told(tmp_path, monkeypatch, capfd):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["snippet"]) == 2
    assert "the folder where this starts was removed, or cannot be read; cd to" in capfd.readouterr().err


def test_a_warning_about_a_file_of_the_users_names_that_and_not_the_command():
    said = ending("warn").stderr
    assert "RuntimeWarning: from a file of the user's\n" in said  # and its line of code, where Python finds it
    assert said.startswith(ENDINGS[1])


def test_what_the_encoding_of_a_terminal_lacks_is_escaped():
    process = ending("print 1", env={"PYTHONIOENCODING": "ascii"})
    assert (process.returncode, process.stdout) == (0, "line 0 \\xe9\n")


def test_what_layers_print_goes_aside_and_is_cut(capfd):
    with printing_aside():
        for number in range(300):
            print(number)
    said, aside = capfd.readouterr()
    assert said == ""
    assert aside.splitlines() == [*map(str, range(100)), "(What layers print further is left out.)"]


def test_a_layer_cannot_close_the_standard_output():
    stream = Lasting(io.StringIO(), "output")
    stream.close()
    stream.write("the report")
    assert stream.getvalue() == "the report"


def test_closed_streams_change_neither_work_nor_status():
    for closed in (">&-", "2>&-", "<&-", ">&- 2>&-"):
        command = f"{' '.join([*ENDINGS, 'print 2'])} {closed}"
        assert ending(args=command).returncode == 0


def test_a_reader_that_goes_away_does_not_end_the_work():
    process = ending(args=f"set -o pipefail; {' '.join([*ENDINGS, 'print 5000'])} | head -1")
    assert process.stdout == "line 0 é\n"
    assert "nobody reads the standard output any more; the work goes on" in process.stderr
    assert process.stderr.endswith("the end\n")
    assert process.returncode == 0


def test_folders_of_commands_that_were_killed_are_removed_by_the_next_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("multilabel_softmax_loss_dead", "multilabel_softmax_loss_new", "another_dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "multilabel_softmax_loss_dead" / "lock").touch()
    with scratch_folder() as living:
        with pytest.raises(BlockingIOError):  # as what cleans temporary folders by their age asks
            fcntl.flock(os.open(living, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
        with scratch_folder():
            assert os.path.isdir(living)
        kept = {os.path.basename(living), "multilabel_softmax_loss_new", "another_dead"}
        assert set(os.listdir(tmp_path)) == kept
    assert not os.path.exists(living)
