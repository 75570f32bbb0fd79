"""The text of a net says in the end what was meant, and is the user's own wherever nothing changed."""

import pytest
from support.tiny_nets import read_net

from multilabel_softmax_loss.nets.editing import edited, field_text, net_edits, statements
from multilabel_softmax_loss.nets.upgrade import upgrade_net


def upgraded(text):
    """The text of an old net as one of Caffe 1.0."""
    old, net = read_net(text), read_net(text)
    upgrade_net(net, "net")
    inputs = net.layer[0] if old.input else None
    made = edited(text, net_edits(text, old, net.layer[1:] if old.input else net.layer, inputs))
    assert read_net(made) == net
    return made


def test_fields_are_found_beside_comments_strings_and_braces_of_both_kinds():
    text = """name: "a # b { c" # d { "
layer < name: 'x' top: "it\\"s" ; param_str: 'one' # between
  'two' dims: [1, 2], inner { a: 1 } > loss_weight: 1"""
    found = list(statements(text, (0, len(text))))
    assert [statement.name for statement in found] == ["name", "layer", "loss_weight"]
    inner = list(statements(text, found[1].inside))
    assert [text[one.start : one.end] for one in inner] == [
        "name: 'x'",
        'top: "it\\"s"',
        "param_str: 'one' # between\n  'two'",
        "dims: [1, 2]",
        "inner { a: 1 }",
    ]


CASES = {
    "one line": """
layers { name: "r" type: RELU top: "r" }  # fast
=>
layer { name: "r" type: "ReLU" top: "r" }  # fast
""",
    "learning rates": """
layers {
  name: "a"  # mine
  type: CONVOLUTION
  blobs_lr: 1  # weights
  blobs_lr: 2  # bias
  convolution_param { num_output: 3 } # few
}
=>
layer {
  name: "a"  # mine
  type: "Convolution"
  param {
    lr_mult: 1
  }  # weights
  param {
    lr_mult: 2
  }  # bias
  convolution_param { num_output: 3 } # few
}
""",
    "learning rates in one line": """
layers { type: CONVOLUTION name: "a" blobs_lr: 0.5 blobs_lr: 2 weight_decay: 1 top: "a" }
=>
layer { type: "Convolution" name: "a" param { lr_mult: 0.5 decay_mult: 1 } param { lr_mult: 2 } top: "a" }
""",
    "what is done to images": """
layer {
  type: "Data"
  data_param {
    source: "x" # a
    scale: 0.5
  }
}
=>
layer {
  type: "Data"
  data_param {
    source: "x" # a
  }
  transform_param {
    scale: 0.5
  }
}
""",
    "comments amid what goes": """
input: "data"
input_shape {
  # a batch
  dim: 1  # sample
}
layer { type: "Silence" bottom: "data" }
=>
layer {
  name: "input"
  type: "Input"
  top: "data"
  input_param {
    shape {
      dim: 1
    }
  }
}
# a batch
# sample
layer { type: "Silence" bottom: "data" }
""",
    "input": """
input: "data"  # images
input_shape { dim: 1 }

layer { type: "Silence" bottom: "data" }
=>
layer {
  name: "input"
  type: "Input"
  top: "data"
  input_param {
    shape {
      dim: 1
    }
  }
}  # images

layer { type: "Silence" bottom: "data" }
""",
    "nothing old": """
layer { name: "new" }

# end
=>
layer { name: "new" }

# end
""",
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_is_old_changes(case):
    old, new = CASES[case].strip("\n").split("\n=>\n")
    assert upgraded(old) == new
    assert upgraded(new) == new
    assert upgraded(old.replace("\n", "\r\n")) == new.replace("\n", "\r\n")


def test_comments_amid_a_field_that_is_replaced_stay_before_what_comes():
    text = "layer {\n  loss_param {\n    # none unknown\n    ignore_label: -1 # but these\n  } # end\n}\n"
    old, new = read_net(text), read_net(text)
    new.layer[0].ClearField("loss_param")
    new.layer[0].loss_weight.append(1)
    made = edited(text, net_edits(text, old, new.layer))
    assert made == "layer {\n  # none unknown\n  # but these\n  loss_weight: 1 # end\n}\n"


def test_a_layer_is_left_out_and_fields_are_added_after_the_last_one():
    text = 'layer {\n  name: "a"\n}\nlayer {\n  name: "b"  # keep this\n  # and this\n}\n'
    old, new = read_net(text), read_net(text)
    new.layer[1].loss_weight.append(1)
    new.layer[1].python_param.param_str = '{"axis": 1}'
    made = edited(text, net_edits(text, old, [None, new.layer[1]]))
    assert made == (
        'layer {\n  name: "b"  # keep this\n  loss_weight: 1\n  python_param {\n    param_str: \'{"axis": 1}\'\n  }\n'
        "  # and this\n}\n"
    )


def test_strings_of_either_quote_are_written_so_that_they_parse():
    for text in ('{"axis": 1}', "{'axis': 1}", 'it\'s "both"', "back\\slash"):
        layer = read_net("layer { }").layer[0]
        layer.python_param.param_str = text
        made = read_net(f"layer {{ {field_text(layer, 'python_param', None)} }}")
        assert made.layer[0].python_param.param_str == text
