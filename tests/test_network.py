"""The description of a network, how parameters begin, and what is refused."""

import dataclasses
import math
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmlp import Layer, Network, init, loss, predictions
from jaxmlp.activations import ACTIVATIONS
from jaxmlp.network import check_parameters, with_mean_outputs

RECTIFIERS = {"relu", "leaky_relu", "elu", "silu", "gelu", "gelu_tanh"}


def test_sizes_may_be_any_sequence_of_integers():
    expected = Network((5, 4, 3))
    for sizes in ([5, 4, 3], np.array([5, 4, 3]), (np.int64(5), 4, np.uint8(3)), range(5, 2, -1)):
        network = Network(sizes)
        assert network == expected
        assert hash(network) == hash(expected)
        assert all(type(size) is int for size in network.sizes)


@pytest.mark.parametrize("sizes", [(5, 4.0, 3), (5, "4", 3), "543", (5, True, 3), 5, None])
def test_a_size_that_is_no_integer_raises_type_error(sizes):
    with pytest.raises(TypeError, match=r"^sizes: expected integers such as .*, got "):
        Network(sizes)


@pytest.mark.parametrize("sizes", [(), (5,), (5, 0), (5, -4, 3)])
def test_too_few_or_empty_layers_raise_value_error(sizes):
    with pytest.raises(ValueError, match="^sizes: expected two or more sizes of at least 1, got "):
        Network(sizes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"activation": "rleu"},
            "unknown activation 'rleu': did you mean 'relu'? expected one of identity, sigmoid, ",
        ),
        ({"activation": ("tanh", "gelu_tahn")}, "did you mean 'gelu_tanh'?"),
        ({"loss": "crossentropy"}, "unknown loss 'crossentropy': did you mean "),
        ({"loss": "square_error"}, "did you mean 'squared_error'?"),
        ({"loss": "xyz"}, "unknown loss 'xyz': expected one of softmax_cross_entropy, "),
        ({"precision": "hihgest"}, "unknown precision 'hihgest': did you mean 'highest'?"),
        ({"precision": "bfloat16"}, "unknown precision 'bfloat16': "),
        ({"precision": ""}, "unknown precision ''"),
    ],
)
def test_an_unknown_name_raises_with_the_nearest_one(arguments, message):
    with pytest.raises(ValueError) as error:
        Network((5, 4, 4, 3), **arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("activation", [(), ("tanh",), ("tanh",) * 3])
def test_another_number_of_activations_than_of_hidden_layers_raises(activation):
    message = (
        f"^activation: expected one name or 2, one for each hidden layer, got {len(activation)}$"
    )
    with pytest.raises(ValueError, match=message):
        Network((5, 4, 4, 3), activation)


def test_activations_names_each_hidden_layer_s():
    assert Network((5, 4, 4, 3), "tanh").activations == ("tanh", "tanh")
    assert Network((5, 4, 4, 3), ["tanh", "relu"]).activations == ("tanh", "relu")
    assert Network((5, 3), "tanh").activations == ()


def test_n_parameters_counts_weights_and_biases():
    # 5·4 + 4 + 4·3 + 3 = 39, without biases 20 + 12 = 32
    assert Network((5, 4, 3)).n_parameters == 39
    assert Network((5, 4, 3), bias=False).n_parameters == 32
    leaves = jax.tree.leaves(jax.eval_shape(init, Network((5, 4, 3)), jax.random.key(0)))
    assert sum(leaf.size for leaf in leaves) == 39


def test_equal_descriptions_are_equal_and_hash_alike_and_others_are_not():
    network = Network((5, 4, 3), ("tanh",), "squared_error", precision="highest")
    same = Network([5, 4, 3], ["tanh"], "squared_error", True, "highest")
    assert network == same and hash(network) == hash(same)
    for change in (
        {"sizes": (5, 3, 3)},
        {"activation": ("relu",)},
        {"loss": "poisson"},
        {"bias": False},
        {"precision": None},
    ):
        assert dataclasses.replace(network, **change) != network


def test_a_network_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Network((5, 3)).bias = False  # pyright: ignore[reportAttributeAccessIssue]


def test_a_network_survives_pickling():
    network = Network((5, 4, 3), ["tanh"], bias=False)
    assert pickle.loads(pickle.dumps(network)) == network


def test_a_network_passes_through_jit_vmap_and_grad_without_static_arguments():
    network = Network((3, 2), loss="squared_error", bias=False)
    weights = jnp.ones((4, 2, 3))
    x, t = jnp.ones((1, 3)), jnp.zeros((1, 2))

    def value(network, weight):
        return loss(network, (Layer(weight, None),), x, t)

    # z = (3, 3), E = ½ (9 + 9) = 9, δ = (3, 3), gradient δ xᵀ = 3
    np.testing.assert_array_equal(jax.jit(jax.vmap(value, (None, 0)))(network, weights), 4 * [9.0])
    gradient = jax.jit(jax.vmap(jax.grad(value, argnums=1), (None, 0)))(network, weights)
    np.testing.assert_array_equal(gradient, np.full((4, 2, 3), 3.0))


def test_an_equal_network_does_not_retrace_and_another_one_does():
    traced = []

    @jax.jit
    def function(network, x):
        traced.append(network)
        return x

    function(Network((3, 2)), 1.0)
    function(Network([3, 2]), 2.0)
    assert traced == [Network((3, 2))]
    function(Network((3, 2), bias=False), 2.0)
    assert traced == [Network((3, 2)), Network((3, 2), bias=False)]


def test_init_draws_he_weights_before_rectifiers_and_lecun_weights_elsewhere():
    n, names = 200, tuple(ACTIVATIONS)
    params = init(Network((n,) * (len(names) + 2), names), jax.random.key(0))
    for layer, name in zip(params, (*names, "the linear output"), strict=True):
        gain = 2 if name in RECTIFIERS else 1
        # The variance of n² = 40,000 normal draws is known to √(2/40,000) = 0.7 %: six sigmas. The
        # mean of N(0, g/n) is known to √(g/n)/n.
        assert float(jnp.var(layer.weight)) * n == pytest.approx(gain, rel=0.042), name
        assert abs(float(jnp.mean(layer.weight))) < 6 * math.sqrt(gain / n) / n, name
        assert layer.bias is not None and not layer.bias.any()


def test_init_scales_with_the_inputs_of_a_layer_and_not_with_its_outputs():
    weight = init(Network((800, 50)), jax.random.key(0))[0].weight
    assert weight.shape == (50, 800)
    assert float(jnp.var(weight)) * 800 == pytest.approx(1, rel=0.042)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_init_draws_each_layer_as_by_itself_whether_at_once_or_alone(
    impl, dtype, together, monkeypatch
):
    monkeypatch.setattr("jaxmlp.network._DRAWN_TOGETHER", 300 if together else 0)
    network = Network((11 if together else 12, 8, 3, 5), ("relu", "tanh"))
    with jax.enable_x64(True):
        params = init(network, jax.random.key(7, impl=impl), dtype)
        keys = jax.random.split(jax.random.key(7, impl=impl), 3)
        for layer, key, gain in zip(params, keys, (2, 1, 1), strict=True):
            drawn = jax.random.normal(key, layer.weight.shape, dtype)
            expected = math.sqrt(gain / layer.weight.shape[1]) * drawn
            np.testing.assert_array_equal(layer.weight, expected)


def test_init_gives_the_same_parameters_for_the_same_key_only(getkey):
    network, key = Network((4, 4, 4)), getkey()
    # A clone may be used again; the key itself may not, under the check for reuse.
    first, second = init(network, jax.random.clone(key)), init(network, jax.random.clone(key))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first, second))
    assert not (first[0].weight == first[1].weight).any()
    assert not (first[0].weight == init(network, getkey())[0].weight).any()


def test_init_returns_a_plain_pytree_of_layers():
    params = init(Network((5, 4, 3)), jax.random.key(0))
    assert isinstance(params, tuple) and all(isinstance(layer, Layer) for layer in params)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [(4, 5), (4,), (3, 4), (3,)]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert paths == ["[0].weight", "[0].bias", "[1].weight", "[1].bias"]
    bare = init(Network((5, 4, 3), bias=False), jax.random.key(0))
    assert all(layer.bias is None for layer in bare)
    assert len(jax.tree.leaves(bare)) == 2


@pytest.mark.parametrize("dtype", [jnp.float32, "float32", jnp.bfloat16, "bfloat16"])
def test_init_returns_parameters_of_the_dtype_asked_for(dtype):
    leaves = jax.tree.leaves(init(Network((5, 3)), jax.random.key(0), dtype))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}


def test_init_makes_float64_where_x64_is_on_and_says_how_where_it_is_off():
    with jax.enable_x64(True):
        params = init(Network((5, 3)), jax.random.key(0), jnp.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="float64 .* JAX_ENABLE_X64=1"),
    ):
        init(Network((5, 3)), jax.random.key(0), jnp.float64)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.int32, jnp.complex64, bool])
def test_init_refuses_other_dtypes(dtype):
    name = np.dtype(dtype).name
    message = f"^dtype: expected float32, float64, float16 or bfloat16, got {name}$"
    with pytest.raises(ValueError, match=message):
        init(Network((5, 3)), jax.random.key(0), dtype)


@pytest.mark.parametrize(
    ("key", "got"),
    [
        (0, "int"),
        (np.zeros(2, np.uint32), "uint32 array"),
        (jnp.zeros(2, jnp.uint32), "uint32 array"),
        (None, "NoneType"),
    ],
)
def test_init_refuses_what_is_no_typed_key(key, got):
    with pytest.raises(TypeError, match=rf"^key: expected a typed key .*, got {got}$"):
        init(Network((5, 3)), key)


def test_init_refuses_several_keys():
    with pytest.raises((TypeError, ValueError), match=r"^key: expected "):
        init(Network((5, 3)), jax.random.split(jax.random.key(0)))


NETWORK = Network((5, 4, 3))
W1, B1, W2, B2 = np.ones((4, 5)), np.ones(4), np.ones((3, 4)), np.ones(3)


def layers(w1=W1, b1=B1, w2=W2, b2=B2):
    floats = [None if leaf is None else np.asarray(leaf, np.float32) for leaf in (w1, b1, w2, b2)]
    return Layer(*floats[:2]), Layer(*floats[2:])


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"w": W1}, TypeError, "params: expected a tuple of 2 jaxmlp.Layer(weight, bias), as "),
        ([W1, B1, W2, B2], TypeError, "params: expected a tuple of 2 jaxmlp.Layer(weight, bias)"),
        (None, TypeError, "returns, got NoneType"),
        ((), ValueError, "params: expected 2 layers, got 0"),
        (layers()[:1], ValueError, "params: expected 2 layers, got 1"),
        (layers() + layers()[1:], ValueError, "params: expected 2 layers, got 3"),
        (
            layers(w1=W1.T),
            ValueError,
            "params[0].weight: expected shape (4, 5), got (5, 4)",
        ),
        (layers(b2=np.ones((3, 1))), ValueError, "params[1].bias: expected shape (3,), got (3, 1)"),
        (
            layers(b2=None),
            ValueError,
            "params[1].bias: expected an array since the network has bias=True, got None",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_named(params, error, message):
    with pytest.raises(error) as raised:
        check_parameters(NETWORK, params)
    assert message in str(raised.value)


def test_parameters_with_an_unexpected_bias_are_named():
    with pytest.raises(ValueError) as raised:
        check_parameters(Network((5, 4, 3), bias=False), layers())
    assert str(raised.value) == (
        "params[0].bias: expected None since the network has bias=False, got an array"
    )


def test_parameters_of_two_dtypes_or_of_integers_are_refused():
    message = "^params: expected one float dtype in all layers, got "
    mixed = (layers()[0], jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layers()[1]))
    with pytest.raises(ValueError, match=f"{message}bfloat16, float32$"):
        check_parameters(NETWORK, mixed)
    integers = jax.tree.map(lambda leaf: leaf.astype(np.int32), layers())
    with pytest.raises(ValueError, match=f"{message}int32$"):
        check_parameters(NETWORK, integers)


def test_parameters_that_fit_pass_and_so_do_traced_ones():
    check_parameters(NETWORK, layers())
    check_parameters(NETWORK, list(layers()))
    jax.eval_shape(lambda params: check_parameters(NETWORK, params), layers())


def test_a_regression_begins_at_the_weighted_mean_of_its_targets():
    targets, weights = np.array([[100.0, 1.0], [300.0, 4.0]]), np.array([3.0, 1.0])
    x = np.zeros((1, 4))  # tanh(0) = 0: what is left is the bias
    for name, targets_mean in (("squared_error", [150, 1.75]), ("poisson", [150, 1.75])):
        network = Network((4, 3, 2), "tanh", name)
        params = init(network, jax.random.key(0))
        params = with_mean_outputs(network, params, targets, weights)
        # (3 · 100 + 300)/4 and (3 · 1 + 4)/4; the Poisson's prediction is e^z.
        np.testing.assert_allclose(predictions(network, params, x)[0], targets_mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("network", "arguments", "text"),
    [
        (Network((4, 3)), (np.zeros(3),), "expected the loss squared_error or poisson"),
        (
            Network((4, 3), loss="poisson", bias=False),
            (np.zeros((2, 3)),),
            "and biases, got poisson and bias=False",
        ),
        (
            Network((4, 3), loss="poisson"),
            (np.zeros(3),),
            "targets: expected shape (N, 3), got (3,)",
        ),
        (Network((4, 1), loss="poisson"), (np.zeros((0, 1)),), "targets: expected shape (N, 1)"),
        (
            Network((4, 1), loss="poisson"),
            (np.zeros(2), np.zeros(2)),
            "sample_weight: expected (2,) numbers ≥ 0 of a sum above 0, got shape (2,) of the sum",
        ),
        (
            Network((4, 1), loss="squared_error"),
            (np.array([1, np.nan]),),
            "targets: expected finite numbers, got nan",
        ),
        (
            Network((4, 1), loss="squared_error"),
            (np.array([1e39, 1e39]),),
            "the mean of targets: expected finite numbers, got inf at [0] in float32, whose",
        ),
        (
            Network((4, 1), loss="poisson"),
            (np.array([1, -2]),),
            "targets: expected numbers ≥ 0 for poisson, got -2",
        ),
        (
            Network((4, 1), loss="squared_error"),
            (np.ones(2), np.array([-1, 3])),
            "sample_weight: expected (2,) numbers ≥ 0 of a sum above 0, got",
        ),
    ],
)
def test_what_has_no_mean_to_begin_at_is_named(network, arguments, text):
    with pytest.raises(ValueError) as raised:
        with_mean_outputs(network, init(network, jax.random.key(0)), *arguments)
    assert text in str(raised.value)


def test_a_target_of_weight_0_may_be_anything():
    network = Network((4, 1), loss="poisson")
    params = init(network, jax.random.key(0))
    started = with_mean_outputs(network, params, [np.nan, 2, -7, 4], [0, 1, 0, 1])
    np.testing.assert_allclose(started[-1].bias, np.log([3]), rtol=1e-6)


def test_targets_n_are_those_of_one_output():
    network = Network((4, 1), loss="squared_error")
    params = with_mean_outputs(network, init(network, jax.random.key(0)), [1, 2, 6])
    np.testing.assert_array_equal(params[-1].bias, [3])


def test_who_gives_no_network_or_an_ensemble_s_parameters_is_told_so():
    params = layers()
    with pytest.raises(TypeError, match="network: expected a jaxmlp.Network, got tuple"):
        check_parameters((4, 3), params)  # pyright: ignore[reportArgumentType]
    several = tuple(
        Layer(jnp.stack([weight, weight]), jnp.stack([bias, bias])) for weight, bias in params
    )
    with pytest.raises(ValueError, match=r"got \(2, .*\), of an ensemble's: see jaxmlp.member$"):
        check_parameters(NETWORK, several)
