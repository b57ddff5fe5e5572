import pytest

from rdmldg_ray.chains.format import SECTIONS, Verdict, judge_text, render_chain


def chain(conclusion):
    return render_chain(dict.fromkeys(SECTIONS, "words") | {"CONCLUSION": conclusion})


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (chain("Sea Animal."), Verdict("Sea Animal.", None)),
        (chain("bird"), Verdict("bird", "wrong_class")),
        (chain("a sea animal"), Verdict("a sea animal", "not_a_class")),
        ("<CONCLUSION>bird</CONCLUSION>", Verdict("bird", "missing_section")),
        ("bird", Verdict(None, "missing_section")),
    ],
)
def test_a_chain_is_kept_when_its_five_stages_conclude_with_the_label(text, verdict):
    assert judge_text(text, "sea_animal", ["bird", "sea_animal"]) == verdict
    assert verdict.accepted == (verdict.reason is None)


@pytest.mark.parametrize("classes", [["C", "C++", "C#"], ["Alarm_Clock", "alarm clock", "ALARM-CLOCK"]])
def test_a_chain_that_concludes_with_another_class_is_never_kept(classes):
    for label in classes:
        for concluded in classes:
            verdict = judge_text(chain(concluded.replace("_", " ")), label, classes)
            assert verdict.accepted == (concluded == label)
