"""Both twins learn the same: gradients, BatchNorm statistics and the losses of AdamW, with every dropout off.

Keras and PyTorch write AdamW the same but for epsilon: PyTorch divides by √(v / (1 − β₂ᵗ)) + ε, Keras by
√v + ε and corrects the bias of both moments in the step, so that its ε weighs 1 / √(1 − β₂ᵗ) times more in
step t. Both decay by `learning_rate * weight_decay * weight` before the step, all trainable weights alike.
So equal training needs `epsilon=1e-8` in Keras (its default is 1e-7), small enough for the rest not to show.
"""

import numpy as np
import pytest
import reference
from keras_networks import (
    CLASSIFIERS,
    QUIET,
    SMALLEST,
    VERSIONS,
    check_same_step,
    images,
    keras,
    layers,
    numpy,
    reference_folder,
    statistics,
    tiny_config,
    tiny_folder,
)

from mobilevit_hub.network.configuration import config_from_dict
from mobilevit_hub.tf.layers import BatchNormalization
from mobilevit_hub.tf.weights import to_checkpoint

tf = pytest.importorskip("tensorflow", reason="gradients are taken with TensorFlow")
pytestmark = [pytest.mark.tf, QUIET]

DROPOUTS = {
    1: ("hidden_dropout_prob", "attention_probs_dropout_prob", "ffn_dropout", "classifier_dropout_prob"),
    2: ("hidden_dropout_prob", "attn_dropout", "ffn_dropout", "classifier_dropout_prob"),
}
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def without_dropout(version):
    return dict.fromkeys(DROPOUTS[version], 0.0)


def keras_step(model, pixels, labels):
    """Loss, logits, and the gradients of one step by their names in the checkpoint and in its layout."""
    weights = {n: w for n, w in model.named_weights().items() if w.variable.trainable}
    with tf.GradientTape() as tape:
        logits = model(pixels, training=True)
        loss = LOSS(labels, logits)
    gradients = tape.gradient(loss, [w.variable.value for w in weights.values()])
    pairs = zip(weights.values(), gradients, strict=True)
    return float(loss), numpy(logits), {w.name: to_checkpoint(numpy(g), w.kind) for w, g in pairs}


def pytorch_twin(version, folder):
    from mobilevit_hub import pt

    cls = getattr(pt, ("MobileViTForImageClassification", "MobileViTV2ForImageClassification")[version - 1])
    return cls.from_pretrained(folder, **without_dropout(version)).train()


def to_torch(pixels, labels):
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))), torch.from_numpy(labels)


def one_step_of_each(version, folder, size):
    """Gradients and statistics of both twins after a step, by name."""
    pixels, labels = images(4, *size, seed=1), np.arange(4)
    model = CLASSIFIERS[version].from_pretrained(folder, **without_dropout(version))
    loss, _, gradients = keras_step(model, pixels, labels)
    twin = pytorch_twin(version, folder)
    inputs, targets = to_torch(pixels, labels)
    twin_loss = twin(inputs, labels=targets).loss
    twin_loss.backward()
    assert loss == pytest.approx(float(twin_loss.detach()), rel=1e-5)
    return model, (gradients, statistics(model)), (
        {name: p.grad.numpy() for name, p in twin.named_parameters()},
        {name: b.numpy() for name, b in twin.named_buffers()},
    )  # fmt: skip


@pytest.mark.parity
@VERSIONS
def test_gradients_and_statistics_are_pytorchs_in_a_published_network(version, tmp_path):
    _, ours, theirs = one_step_of_each(version, reference_folder(tmp_path, SMALLEST[version]), (96, 64))
    check_same_step(ours, theirs)


@pytest.mark.parity
def test_the_comparison_sees_keras_own_rule_for_the_running_variance(tmp_path, monkeypatch):
    _, _, theirs = one_step_of_each(1, tiny_folder(tmp_path, 1), (64, 64))
    monkeypatch.setattr(BatchNormalization, "call", keras.layers.BatchNormalization.call)
    _, ours, _ = one_step_of_each(1, tmp_path, (64, 64))
    counted = [{n: b for n, b in buffers.items() if not n.endswith("tracked")} for _, buffers in (ours, theirs)]
    with pytest.raises(AssertionError, match="running_var"):
        check_same_step((ours[0], counted[0]), (theirs[0], counted[1]))


@pytest.mark.parametrize("variant", SMALLEST.values())
def test_a_training_step_equals_apples(variant, tmp_path):
    """Loss, logits, gradient norms and statistics, as stored from Apple's code."""
    version = reference.manifest()[variant]["version"]
    case = reference.load_case(variant, "train_192x128")
    model = CLASSIFIERS[version].from_pretrained(reference_folder(tmp_path, variant), **without_dropout(version))
    loss, logits, gradients = keras_step(model, case.input().transpose(0, 2, 3, 1), np.array(case.labels))
    buffers, by_apples_name = statistics(model), {"grads": {}, "buffers": {}}
    for name, _ in reference.manifest()[variant]["tensors"]:
        names = reference.new_names(variant, name, "transformers")
        kind, values = ("buffers", buffers) if names[0] in buffers else ("grads", gradients)
        by_apples_name[kind][name] = np.concatenate([np.atleast_1d(values[n]) for n in names])
    assert {int(n) for name, n in buffers.items() if name.endswith("num_batches_tracked")} == {101}
    case.check({"loss": np.array([loss]), "logits": logits, **by_apples_name})


def losses_of_each(version, folder, size, learning_rate=1e-3, steps=8):
    """Losses of some steps of AdamW with both twins, on the same batch."""
    import torch

    pixels, labels = images(4, *size, seed=2), np.arange(4)
    model = CLASSIFIERS[version].from_pretrained(folder, **without_dropout(version))
    optimizer = keras.optimizers.AdamW(learning_rate, weight_decay=0.05, beta_1=0.9, beta_2=0.999, epsilon=1e-8)
    model.compile(optimizer, LOSS, run_eagerly=True)
    ours = [float(model.train_on_batch(pixels, labels)) for _ in range(steps)]

    twin = pytorch_twin(version, folder)
    optimizer = torch.optim.AdamW(twin.parameters(), learning_rate, (0.9, 0.999), eps=1e-8, weight_decay=0.05)
    inputs, targets = to_torch(pixels, labels)
    theirs = []
    for _ in range(steps):
        loss = twin(inputs, labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(float(loss.detach()))
    return np.array(ours), np.array(theirs)


@pytest.mark.parity
@VERSIONS
def test_steps_of_adamw_have_the_same_losses(version, tmp_path):
    ours, theirs = losses_of_each(version, tiny_folder(tmp_path, version), (64, 64))
    assert theirs[-1] < 0.8 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parity
@VERSIONS
def test_twenty_steps_of_adamw_have_the_same_losses_in_a_full_network(version, tmp_path):
    """A fresh one; with the weights of the rule, gradients are so large that the rounding of one step shows."""
    keras.utils.set_random_seed(0)
    fields = {name: value for name, value in reference.config(SMALLEST[version]).items() if "label" not in name}
    CLASSIFIERS[version](config_from_dict({**fields, "num_labels": 10})).save_pretrained(tmp_path)
    ours, theirs = losses_of_each(version, tmp_path, (128, 96), learning_rate=1e-4, steps=20)
    assert theirs[-1] < 0.7 * theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@VERSIONS
def test_a_fresh_network_passes_gradients_to_every_weight(version):
    _, _, gradients = keras_step(CLASSIFIERS[version](tiny_config(version)), images(4, 96, 96), np.arange(4))
    assert not [name for name, value in gradients.items() if not np.abs(value).max() > 0 and "key.bias" not in name]


@VERSIONS
def test_norms_follow_pytorchs_momentum_and_epsilon(version, tmp_path):
    model = CLASSIFIERS[version].from_pretrained(tiny_folder(tmp_path, version))
    assert {(layer.momentum, layer.epsilon) for layer in layers(model, BatchNormalization)} == {(0.9, 1e-5)}


def test_one_value_per_channel_moves_the_variance_to_zero_not_to_infinity():
    """PyTorch refuses such a batch; n / (n − 1) is infinite there."""
    layer = BatchNormalization()
    layer.build((None, None, None, 2))
    layer(np.ones((1, 1, 1, 2), np.float32), training=True)
    np.testing.assert_allclose(numpy(layer.moving_variance + 0), 0.9, rtol=1e-6)
