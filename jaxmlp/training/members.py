"""The members of an ensemble: their settings side by side, each number an array (M,)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxmlp.network import Layer, Network, Parameters, check_members, init
from jaxmlp.training.optimizers import OPTIMIZERS
from jaxmlp.training.regularization import Regularization
from jaxmlp.training.settings import Settings
from jaxmlp.validation import as_host_array

EACH = (
    "learning_rate", "warmup", "weight_decay", "clip_norm", "max_norm", "input_dropout",
    "label_smoothing", "average_decay",
)  # fmt: skip
"""The settings of which every member may have its own number."""


def init_members(
    network: Network,
    keys: Array,
    dtype: DTypeLike = np.float32,
    *,
    scale: ArrayLike = 1.0,
    widths: ArrayLike | None = None,
) -> Parameters:
    """Return initial parameters of M networks, every leaf with a leading axis M.

    Member m has the parameters of `jaxmlp.init` for its key, the weights times its scale. One
    narrower than the network has those of a network of its widths, and zeros around them.

    Args:
        network: The network, as wide as the widest member.
        keys: (M,) typed keys.
        dtype: As for `jaxmlp.init`.
        scale: One number for all, or (M,).
        widths: (M, L − 1) units of every hidden layer, 1 to the network's own; or None for those.

    Returns:
        The parameters.

    Raises:
        TypeError: No typed keys.
        ValueError: Numbers or shapes that do not fit.
    """
    check_keys(keys)
    count = len(keys)
    scales = numbers_of_members("scale", scale, count)
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise ValueError(f"scale: expected finite numbers above 0, got {scales.min():g} at least")
    rows = checked_widths(network, widths, count)
    if rows is None:
        rows = np.tile(np.array(network.sizes[1:-1], int), (count, 1))
    members: list[Any] = [None] * count
    for own in dict.fromkeys(map(tuple, rows.tolist())):
        narrow = network_of_widths(network, own)
        which = [m for m, row in enumerate(rows.tolist()) if tuple(row) == own]
        drawn = jax.vmap(lambda key, narrow=narrow: init(narrow, key, dtype))(
            jax.random.clone(keys)[np.array(which)]
        )
        for place, m in enumerate(which):
            alone = jax.tree.map(lambda leaf, place=place: leaf[place], jax.device_get(drawn))
            members[m] = _embedded(network, alone, scales[m])
    stacked: Any = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
    return jax.device_put(stacked)


def _embedded(network: Network, params: Parameters, scale: float) -> Parameters:
    """Return the parameters of a narrower network among zeros, the weights scaled; on the host."""
    layers = []
    for layer, n_in, n_out in zip(params, network.sizes[:-1], network.sizes[1:], strict=True):
        weight: Any = np.zeros((n_out, n_in), layer.weight.dtype)
        rows, columns = layer.weight.shape
        weight[:rows, :columns] = (np.float64(scale) * layer.weight).astype(weight.dtype)
        bias: Any = None
        if layer.bias is not None:
            bias = np.zeros(n_out, layer.bias.dtype)
            bias[:rows] = layer.bias
        layers.append(Layer(weight, bias))
    return tuple(layers)


def network_of_widths(network: Network, widths: Sequence[int]) -> Network:
    """Return the network with these units in its hidden layers."""
    sizes = (network.sizes[0], *widths, network.sizes[-1])
    return Network(sizes, network.activations, network.loss, network.bias, network.precision)


def member(network: Network, params: Parameters, m: int, widths: ArrayLike | None = None) -> Any:
    """Return the network and the parameters of one member, without what is masked.

    Args:
        network: The network of the ensemble.
        params: Its parameters, every leaf (M, …).
        m: The member's number.
        widths: As for `init_members`.

    Returns:
        The pair (network, params) that every other function takes.

    Raises:
        TypeError: As `check_members`, or a number that is no integer.
        ValueError: As `check_members`, or there is no such member.
    """
    count = check_members(network, params)
    if isinstance(m, bool) or not isinstance(m, (int, np.integer)):
        raise TypeError(f"m: expected the number of a member, got {m!r:.60}")
    if not 0 <= m < count:
        raise ValueError(f"m: expected a member from 0 to {count - 1}, got {m}")
    alone: Any = jax.tree.map(lambda leaf: leaf[m], params)
    if widths is None:
        return network, alone
    rows = checked_widths(network, widths, count)
    assert rows is not None
    narrow = network_of_widths(network, rows[m].tolist())
    layers = []
    for layer, n_in, n_out in zip(alone, narrow.sizes[:-1], narrow.sizes[1:], strict=True):
        bias = None if layer.bias is None else layer.bias[:n_out]
        layers.append(Layer(layer.weight[:n_out, :n_in], bias))
    return narrow, tuple(layers)


def check_keys(keys: Any) -> None:
    """Raise unless `keys` is an array (M,) of at least one typed key.

    Raises:
        TypeError: It is no array of typed keys.
        ValueError: It has another shape.
    """
    if not (isinstance(keys, Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise TypeError(
            "keys: expected typed keys such as jax.random.split(jax.random.key(0), 8), got "
            f"{type(keys).__name__}"
        )
    if keys.ndim != 1 or len(keys) == 0:
        raise ValueError(f"keys: expected one for each member, got shape {keys.shape}")


def numbers_of_members(name: str, value: Any, count: int) -> np.ndarray:
    """Return one number for all, or one for each, as (M,) in float64.

    Raises:
        TypeError: No numbers.
        ValueError: Another shape.
    """
    array = as_host_array(name, value).astype(np.float64)
    if array.shape not in ((), (count,)):
        raise ValueError(f"{name}: expected one number or {count}, got shape {array.shape}")
    return np.broadcast_to(array, (count,))


def checked_widths(network: Network, widths: ArrayLike | None, count: int) -> np.ndarray | None:
    """Return the widths as (M, L − 1) integers, or None.

    Raises:
        TypeError: No integers.
        ValueError: Another shape, or a width that the network does not have.
    """
    if widths is None:
        return None
    rows, hidden = as_host_array("widths", widths), network.sizes[1:-1]
    if rows.dtype.kind not in "iu":
        raise TypeError(f"widths: expected integers, got {rows.dtype}")
    if rows.shape != (count, len(hidden)):
        raise ValueError(f"widths: expected shape ({count}, {len(hidden)}), got {rows.shape}")
    if (rows < 1).any() or (rows > np.array(hidden, int)).any():
        raise ValueError(f"widths: expected 1 to {list(hidden)} units, got {rows.tolist()!r:.80}")
    return rows


def check_absent_units(params: Parameters, widths: np.ndarray | None) -> None:
    """Raise ValueError where a unit that a member has not is not all zeros in its parameters.

    Args:
        params: The members' parameters, every leaf (M, …).
        widths: (M, L − 1), or None.

    Raises:
        ValueError: With the first such member.
    """
    if widths is None:
        return
    for l in range(widths.shape[1]):
        absent = np.arange(params[l].weight.shape[1]) >= widths[:, l, None]
        into, out_of = np.asarray(params[l].weight), np.asarray(params[l + 1].weight)
        there = (into != 0).any(axis=2) | (out_of != 0).any(axis=1)
        if params[l].bias is not None:
            there |= np.asarray(params[l].bias) != 0
        wrong = (absent & there).any(axis=1)
        if wrong.any():
            m = int(np.argmax(wrong))
            raise ValueError(
                f"params: expected zeros beyond the {widths[m, l]} units of hidden layer {l + 1} "
                f"of member {m}, got others: init_members(…, widths=…) makes them"
            )


def member_settings(
    network: Network, count: int, settings: Mapping[str, Any], dropout: Any
) -> list[Settings]:
    """Return the checked settings of every member.

    Args:
        network: The network.
        count: How many members there are.
        settings: The fields of `Settings` but for dropout; those of `EACH`, and the values of
            `optimizer_settings`, may be (M,).
        dropout: A rate for all hidden layers of all members, (M,) for all layers of each, or
            (M, L − 1).

    Returns:
        M settings.

    Raises:
        TypeError: As `Settings.check`.
        ValueError: As `Settings.check`, with the member; or a shape that does not fit.
    """
    own = {
        name: numbers_of_members(name, settings[name], count)
        for name in EACH
        if settings.get(name) is not None
    }
    optimizer_settings = settings.get("optimizer_settings") or {}
    if not isinstance(optimizer_settings, Mapping):
        raise TypeError(
            f"optimizer_settings: expected name → number, got {optimizer_settings!r:.60}"
        )
    numbers = {
        name: numbers_of_members(f"optimizer_settings: {name}", value, count)
        for name, value in optimizer_settings.items()
    }
    hidden = len(network.activations)
    rates = as_host_array("dropout", dropout).astype(np.float64)
    if rates.shape not in ((), (count,), (count, hidden)):
        raise ValueError(
            f"dropout: expected one rate, ({count},) or ({count}, {hidden}), got shape "
            f"{rates.shape}"
        )
    if rates.any() and not hidden:
        raise ValueError("dropout: expected none for a network without a hidden layer")
    if rates.ndim < 2:
        rates = np.broadcast_to(rates.reshape(-1, 1), (count, hidden))
    result = []
    for m in range(count):
        one = Settings(
            **{
                **settings,
                **{name: float(values[m]) for name, values in own.items()},
                "optimizer_settings": {name: float(v[m]) for name, v in numbers.items()},
                "dropout": tuple(rates[m].tolist()) if rates[m].any() else (),
            }
        )
        try:
            one.check(network)
        except ValueError as error:
            # An array's fault has a place.
            where = f" (member {m})" if count > 1 and m else ""
            raise ValueError(f"{error}{where}") from None
        result.append(one)
    return result


def transformation(settings: Sequence[Settings]) -> tuple[str, bool, bool]:
    """Return the arguments of `optimizer_named` for all members: what one needs, all have."""
    names, decaying, clipping = zip(*(one.transformation for one in settings), strict=True)
    return names[0], any(decaying), any(clipping)


def optimizer_numbers(settings: Sequence[Settings]) -> dict[str, np.ndarray]:
    """Return the numbers of the optimisers' state but for the learning rates, each (M,)."""
    numbers = [one.numbers for one in settings]
    names = dict.fromkeys(name for own in numbers for name in own)
    known = set(names) | set(OPTIMIZERS[settings[0].optimizer].settings)
    return {name: np.array([own.get(name, 0.0) for own in numbers]) for name in sorted(known)}


def regularizations(
    network: Network,
    settings: Sequence[Settings],
    dtype: DTypeLike,
    widths: np.ndarray | None,
) -> Regularization:
    """Return the numbers of the regularised steps, each (M,) on the host; None where all are off.

    What is off for one member and not for others has a number that changes nothing: 0.
    """

    def numbers(values: Sequence[float | None]) -> Any:
        return np.array([value or 0 for value in values], dtype) if any(values) else None

    hidden = len(network.activations)
    layers = [
        [one.input_dropout for one in settings],
        *([(one.dropout or (0.0,) * hidden)[l] for one in settings] for l in range(hidden)),
    ]
    rates = tuple(numbers(layer) for layer in layers)
    units: Any = None
    if widths is not None:
        units = tuple(
            (np.arange(size) < widths[:, l, None]).astype(dtype)
            for l, size in enumerate(network.sizes[1:-1])
        )
    return Regularization(
        label_smoothing=numbers([one.label_smoothing for one in settings]),
        dropout=None if all(rate is None for rate in rates) else rates,
        max_norm=numbers([one.max_norm for one in settings]),
        average_forgets=numbers([one.average_decay and 1 - one.average_decay for one in settings]),
        units=units,
    )
