"""The benchmark of `prepare`, on a handful of drawn photos."""

import prepare


def test_it_prints_a_rate_and_what_it_means_for_imagenet(capfd):
    assert prepare.main(["--count", "40", "--size", "16"]) == 0
    printed = capfd.readouterr().out
    assert "38 training and 2 validation photos of 2 classes, 16×16" in printed
    assert "40 photos in" in printed and "ImageNet's 1,331,167 at that rate" in printed


def test_a_source_that_is_not_there_ends_it(tmp_path, capfd):
    assert prepare.main(["--data", str(tmp_path / "absent")]) == 2
    assert "error" in capfd.readouterr().err
