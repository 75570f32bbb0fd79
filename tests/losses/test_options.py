import dataclasses

import numpy as np
import pytest

from multilabel_softmax_loss import softmax_cross_entropy
from multilabel_softmax_loss.losses.options import SoftmaxOptions

parse = SoftmaxOptions.parse


def test_defaults_are_those_of_the_contract():
    options = parse("")
    assert {field.name: getattr(options, field.name) for field in dataclasses.fields(options)} == {
        "axis": 1,
        "label_format": "dense",
        "label_normalization": "l1",
        "normalization": "VALID",
        "empty": "ignore",
        "ignore_label": None,
        "label_smoothing": 0.0,
        "class_weight": None,
        "divergence": "cross_entropy",
        "nonfinite": "error",
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"axis": -1, "empty": "error", "ignore_label": null}',
        "{'axis': -1, 'empty': 'error', 'ignore_label': None}",
        "  {'axis': -1, 'empty': 'error',}\n",
    ],
)
def test_json_and_dict_literals_are_read(text):
    options = parse(text)
    assert (options.axis, options.empty, options.ignore_label) == (-1, "error", None)


@pytest.mark.parametrize("text", ["", "  ", "{}"])
def test_nothing_means_the_defaults(text):
    assert parse(text).normalization == "VALID"


def test_options_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse("").axis = 2


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"normalisation": "VALID"}', "unknown option 'normalisation'; did you mean 'normalization'?"),
        ('{"colour": 1}', "unknown option 'colour'; expected one of axis, label_format, "),
        ("{1: 2}", "unknown option 1; expected one of axis"),
        ('{"normalization": "valid"}', "option 'normalization' = 'valid'; expected one of .*; did you mean 'VALID'?"),
        ('{"empty": "skip"}', "option 'empty' = 'skip'; expected one of 'ignore', 'uniform', 'error'$"),
        ('{"label_smoothing": 1.5}', "option 'label_smoothing' = 1.5; expected a number from 0 to 1"),
        ('{"label_smoothing": 1' + "0" * 400 + "}", "option 'label_smoothing' = 1.*; expected a number from 0 to 1"),
        ('{"class_weight": [1' + "0" * 400 + "]}", "option 'class_weight' = .*; expected a list of finite numbers"),
        ('{"label_smoothing": NaN}', "option 'label_smoothing' = nan; expected a number from 0 to 1"),
        ('{"ignore_label": Infinity}', "option 'ignore_label' = inf; expected a finite number"),
        ('{"class_weight": [1, -2]}', r"option 'class_weight' = \[1, -2\]; expected .*; entry 1 is -2"),
        ('{"class_weight": []}', r"option 'class_weight' = \[\]; expected a list of finite numbers >= 0"),
        ('{"class_weight": [[1, 2], [3, 4]]}', r"its shape is \(2, 2\)"),
        ('{"class_weight": [[1, 2, 3]]}', r"one per class, .*; its shape is \(1, 3\), where \(C,\) is meant"),
        ('{"class_weight": [[1], [2]]}', r"its shape is \(2, 1\), where \(C,\) is meant"),
        (
            '{"class_weight": "missing.npy"}',
            "missing.npy.*; expected a readable file of one number per class; there is none in /.*, from where",
        ),
        ('{"axis": 1, "axis": 2}', "option 'axis' twice"),
        ("{'axis': 1, 'axis': 2}", "option 'axis' twice"),
        ('{"axis": {"a": 1, "a": 2}}', "option 'a' twice"),
        ("{'axis': {'a': 1, 'a': 2}}", "option 'a' twice"),
        ('{"label_format": "indices", "ignore_label": 0.5}', "'ignore_label' = 0.5; expected a whole number"),
        ("[1, 2]", r"'\[1, 2\]', which is no dict such as"),
        ("(('axis', 1),)", "no dict such as"),
        ("3", "'3', which is no dict such as"),
        ('{"class_weight": [null]}', "entry 0 is nan"),
        ("axis=1", "'axis=1', neither JSON nor a Python dict literal"),
        ('{"axis": 1', "neither JSON nor a Python dict literal .*column 11"),
        ("{**{}}", "neither JSON nor a Python dict literal"),
        ("{" * 5000, "neither JSON nor a Python dict literal"),
        ("[" * 100000, "neither JSON nor a Python dict literal"),
    ],
)
def test_bad_values_are_value_errors(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"axis": "one"}', "option 'axis' = 'one'; expected an integer"),
        ('{"axis": 1.0}', "option 'axis' = 1.0; expected an integer"),
        ('{"axis": true}', "option 'axis' = True; expected an integer"),
        ('{"axis": null}', "option 'axis' = None; expected an integer"),
        ('{"empty": 0}', "option 'empty' = 0; expected one of"),
        ('{"label_smoothing": "0.1"}', "option 'label_smoothing' = '0.1'; expected a number from 0 to 1"),
        ('{"ignore_label": true}', "option 'ignore_label' = True; expected a finite number"),
        ('{"class_weight": 3}', "option 'class_weight' = 3; expected a list of finite numbers >= 0, one per class"),
        ('{"class_weight": ["1"]}', "expected a list of finite numbers"),
        ('{"class_weight": {"cat": 1}}', "expected a list of finite numbers"),
    ],
)
def test_wrong_types_are_type_errors(text, message):
    with pytest.raises(TypeError, match=message):
        parse(text)


@pytest.mark.parametrize("text", ["__import__('os').mkdir('{0}')", "{{'axis': __import__('os').mkdir('{0}')}}"])
def test_nothing_is_executed(text, tmp_path):
    target = tmp_path / "made"
    with pytest.raises(ValueError, match="neither JSON nor a Python dict literal"):
        parse(text.format(target))
    assert not target.exists()


@pytest.mark.parametrize("name, text", [("w.txt", "1 2\n0.5"), ("w.csv", "1, 2, 0.5\n"), ("w.npy", None)])
def test_class_weights_come_from_a_file(tmp_path, name, text):
    path = tmp_path / name
    if text is None:
        np.save(path, np.array([1, 2, 0.5], np.float32))
    else:
        path.write_text(text)
    np.testing.assert_array_equal(SoftmaxOptions(class_weight=str(path)).class_weight, [1, 2, 0.5])


@pytest.mark.parametrize(
    "name, content",
    [
        ("w.npy", b""),
        ("w.npy", b"\x93NUMPY torn"),
        ("w.npy", b"PK\x03\x04torn"),
        ("w.txt", b"1 two"),
        ("w.txt", b"\xff"),
    ],
)
def test_a_torn_or_foreign_file_of_weights_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match="option 'class_weight' = .*; expected a readable file of one number per class"
    ):
        SoftmaxOptions(class_weight=str(path))


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), ()])
def test_a_file_of_weights_has_one_axis(tmp_path, shape):
    path = tmp_path / "w.npy"
    np.save(path, np.ones(shape))
    with pytest.raises(ValueError, match=r"its shape is \(.*\), where \(C,\) is meant"):
        SoftmaxOptions(class_weight=str(path))


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "w.npy"
    np.save(path, np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="readable file"):
        SoftmaxOptions(class_weight=str(path))


def test_the_function_takes_the_same_names():
    with pytest.raises(ValueError, match="unknown option 'weights'"):
        softmax_cross_entropy([[0.0]], [[1]], weights=[1])
    with pytest.raises(ValueError, match="unknown option 'smoothing'; did you mean 'label_smoothing'?"):
        softmax_cross_entropy([[0.0]], [[1]], smoothing=0.1)
