"""Progress: a bar on a terminal, elsewhere a line after the first step and then every minute."""

from tinyconv.run.progress_bar import ProgressBar


def run(training, shown, monkeypatch, seconds_a_step=25.0):
    now = [0.0]
    monkeypatch.setattr("tinyconv.run.progress_bar.time.monotonic", lambda: now[0])
    with ProgressBar(training, shown) as bar:

        def on_step():
            now[0] += seconds_a_step
            bar.on_step()

        training.run(on_step=on_step)


def test_without_a_terminal_there_is_a_line_at_once_and_then_one_a_minute(
    training, monkeypatch, capsys
):
    run(training, None, monkeypatch)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "" and [line.split("   ")[0] for line in lines] == [
        *("step 1 of 8", "step 4 of 8", "step 7 of 8"),
    ]
    assert lines[0].startswith("step 1 of 8   loss ") and "left" not in lines[0]
    # 8 images in 25 s; four steps of 25 s are left.
    assert lines[1].endswith("   0 images/s   2 min left")


def test_a_bar_counts_images(training, monkeypatch, capsys):
    run(training, True, monkeypatch)
    printed = capsys.readouterr()
    assert printed.out == "" and "64/64" in printed.err and "top1=" in printed.err


def test_other_ranks_show_nothing(training, monkeypatch, capsys):
    run(training, False, monkeypatch)
    assert capsys.readouterr() == ("", "")
