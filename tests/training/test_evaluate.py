import numpy as np
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from toy import make_classifier, make_items

from raybal.balancing.base import Predictor
from raybal.training.evaluate import evaluate


def test_metrics_equal_scikit_learns():
    items = make_items(37, missing=0.4)
    classifier = make_classifier()
    found = evaluate(Predictor(classifier), items, torch.device("cpu"), batch_size=8)
    classifier.eval()
    with torch.no_grad():
        inputs = {m: torch.from_numpy(a) for m, a in items.inputs.items()}
        output = classifier(inputs, torch.from_numpy(items.present))
    heads = {"fused": (output.logits, np.ones(37, bool))}
    heads |= {m: (output.unimodal_logits[m], items.present[:, i]) for i, m in enumerate(("audio", "video"))}
    assert found["items"] == 37
    for head, (logits, rows) in heads.items():
        labels, predicted = items.labels[rows], logits.argmax(1).numpy()[rows]
        probabilities = logits.double().softmax(1).numpy()[rows]
        assert found[head]["accuracy"] == accuracy_score(labels, predicted)
        np.testing.assert_allclose(found[head]["balanced_accuracy"], balanced_accuracy_score(labels, predicted))
        np.testing.assert_allclose(found[head]["nll"], log_loss(labels, probabilities, labels=[0, 1, 2]), rtol=1e-6)


def test_a_modality_that_no_item_has_is_not_invented():
    items = make_items(5)
    items.present[:, 0] = False
    assert evaluate(Predictor(make_classifier()), items, torch.device("cpu"))["audio"] is None


def test_evaluation_leaves_the_model_in_its_mode():
    classifier = make_classifier()
    for mode in (True, False):
        classifier.train(mode)
        evaluate(Predictor(classifier), make_items(3), torch.device("cpu"))
        assert classifier.training is mode
