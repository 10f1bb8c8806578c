"""The seven equations of the derivation on paper, for ONE example, slow and literal.

The network has one hidden sigmoid layer, a softmax output, cross-entropy and no biases::

    x  ──W1──>  z1 = W1 x  ──σ──>  y1 = σ(z1)  ──W2──>  z2 = W2 y1  ──softmax──>  y2,      E(y2, t)

Shape letters, for the whole file: N examples, D inputs, H hidden units, K outputs.

    x (D,)    W1 (H, D)    z1, y1 (H,)    W2 (K, H)    z2, y2, t (K,)

A weight W_uv leads from input v to output u, so a matrix is (n_out, n_in). A superscript of the
paper is a digit here: y⁽¹⁾ is `y1`. ∂E/∂a for a vector a is a row vector, ∂b/∂a is the Jacobian
with row i for b_i and column j for a_j, and the chain rule is a product read from left to right.

Everything stands as the paper derives it: Jacobians are whole matrices, exp is not guarded. It is
meant for reading and as a witness for faster code. It overflows for large z and cancels for
confident outputs; docs/derivation.md has the forms that do not.

Where the paper's printed line is wrong, the right one is written here, and the docstring says
"Slip" with the number that the slip has in docs/derivation.md.

| equation | what it says                                     | function                          |
| -------- | ------------------------------------------------ | --------------------------------- |
| forward  | z1 = W1 x, y1 = σ(z1), z2 = W2 y1, y2 = softmax  | `forward`, `sigmoid`, `softmax`   |
| 1        | E = −(1/N) t · log y2                            | `cross_entropy`                   |
| 2        | ∂E/∂z2 = (y2 − t)ᵀ, from the next two            | `loss_gradient_z2`                |
|          | ∂E/∂y2 = −t/y2                                   | `loss_gradient_y2`                |
|          | ∂y2/∂z2: y_i (1 − y_i) and −y_i y_j              | `softmax_jacobian`                |
| 3        | ∂E/∂y1 = (y2 − t)ᵀ W2                            | `loss_gradient_y1`                |
| 4        | ∂E/∂W2_uv = (y2_u − t_u) y1_v                    | `loss_gradient_w2`                |
| 5        | ∂y1/∂z1 = diag(y1 * (1 − y1))                    | `sigmoid_jacobian`                |
| 6        | ∂E/∂z1 = (y2 − t)ᵀ W2 diag(y1 * (1 − y1))        | `loss_gradient_z1`                |
| 7        | ∂E/∂W1_uv = (∂E/∂z1)_u x_v                       | `loss_gradient_w1`                |
| 1 to 7   | both weight gradients of one example             | `loss_gradients`                  |

Equations 3 to 7 take the gradient before them as an argument, as the paper's first line of each
does. So the loss, its targets and its N enter in equation 2 and nowhere else.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class Values(NamedTuple):
    """What the forward pass computes, in the order in which it does.

    Attributes:
        z1: W1 x, shape (H,).
        y1: σ(z1), shape (H,).
        z2: W2 y1, shape (K,).
        y2: softmax(z2), shape (K,).
    """

    z1: Array
    y1: Array
    z2: Array
    y2: Array


# ---------------------------------------------------------------------------- the forward pass


def sigmoid(z1: Array) -> Array:
    """The hidden activation, y1 = 1 / (1 + exp(−z1)).

    Paper: question 5, first line.

    Args:
        z1: shape (H,).

    Returns:
        y1, shape (H,).
    """
    return 1 / (1 + jnp.exp(-z1))


def softmax(z2: Array) -> Array:
    """The output activation, y2_i = exp(z2_i) / Σ_k exp(z2_k).

    Paper: question 2, "Consider softmax function".

    Args:
        z2: shape (K,).

    Returns:
        y2, shape (K,), positive and of sum 1.
    """
    return jnp.exp(z2) / jnp.sum(jnp.exp(z2))


def forward(w1: Array, w2: Array, x: Array) -> Values:
    """The network's value for one example, y2 = softmax(W2 σ(W1 x)).

    Paper: nowhere in one line; z1 = W1 x is used in question 7 and z2 = W2 y1 in questions 3 and 4.

    Args:
        w1: shape (H, D).
        w2: shape (K, H).
        x: shape (D,).

    Returns:
        z1, y1, z2 and y2.

    Example:
        >>> import jax.numpy as jnp
        >>> w1 = jnp.array([[0.1, -0.2, 0.3], [0.4, 0.5, -0.6]])
        >>> w2 = jnp.array([[0.7, -0.8], [-0.9, 1.0]])
        >>> values = forward(w1, w2, jnp.array([1.0, 2.0, -1.0]))
        >>> [f"{probability:.4f}" for probability in values.y2]
        ['0.2653', '0.7347']
    """
    z1 = w1 @ x
    y1 = sigmoid(z1)
    z2 = w2 @ y1
    y2 = softmax(z2)
    return Values(z1, y1, z2, y2)


# ---------------------------------------------------------------------------- equation 1


def cross_entropy(y2: Array, t: Array, n: int = 1) -> Array:
    """Equation 1, E = −(1/N) Σ_k t_k log y2_k.

    Paper: question 1, E = −(1/N) log y. There y is the probability of the true class, which is
    what Σ_k t_k log y2_k leaves for a one-hot t. The sum of E over the N examples of a batch is
    the batch's mean loss. From question 2 on the paper has N = 1 (Slip 2).

    Args:
        y2: the outputs, shape (K,).
        t: the target, shape (K,), of any total.
        n: N, the number of examples in the batch to which this one belongs.

    Returns:
        E, a scalar.
    """
    return -(1 / n) * jnp.sum(t * jnp.log(y2))


# ---------------------------------------------------------------------------- equation 2


def loss_gradient_y2(y2: Array, t: Array, n: int = 1) -> Array:
    """Equation 2, its first factor, ∂E/∂y2_i = −(1/N) t_i / y2_i.

    Paper: question 2, the row vector (−t_1/y_1, −t_2/y_2, …). Slip 1: the first attempt writes
    t/y without the sign. Slip 2: the factor 1/N of equation 1 is left out.

    Args:
        y2: the outputs, shape (K,).
        t: the target, shape (K,), of any total.
        n: N, as in equation 1.

    Returns:
        The row vector ∂E/∂y2, shape (K,).
    """
    return -(1 / n) * t / y2


def softmax_jacobian(y2: Array) -> Array:
    """Equation 2, its second factor, ∂y2_i/∂z2_j = y_i (1 − y_i) if i = j, else −y_i y_j.

    Paper: question 2, results (1) and (2). Slip 1: the first attempt keeps only the diagonal.
    Slip 3: the matrix is printed transposed, which changes nothing, for it is symmetric.

    Args:
        y2: the outputs, shape (K,).

    Returns:
        The Jacobian, shape (K, K), row i for y2_i and column j for z2_j.
    """
    y_i = y2[:, None]
    y_j = y2[None, :]
    same = jnp.eye(y2.shape[0], dtype=bool)
    return jnp.where(same, y_i * (1 - y_i), -y_i * y_j)


def loss_gradient_z2(y2: Array, t: Array, n: int = 1) -> Array:
    """Equation 2, ∂E/∂z2 = ∂E/∂y2 ∂y2/∂z2 = (1/N) (s y2 − t)ᵀ with s = Σ_k t_k.

    Paper: question 2, last line, (y − t)ᵀ, which is this with N = 1 and s = 1. Slip 2: 1/N is left
    out. Slips 3 and 4: two signs on the way are wrong and the last line is right. Slip 5: the step
    from y_j Σ_i t_i − t_j to y_j − t_j needs Σ t = 1; for another total s the y must keep it.

    Args:
        y2: the outputs, shape (K,).
        t: the target, shape (K,), of any total s.
        n: N, as in equation 1.

    Returns:
        The row vector ∂E/∂z2, shape (K,). It is `loss_gradient_y2 @ softmax_jacobian`.
    """
    s = jnp.sum(t)
    return (1 / n) * (s * y2 - t)


# ---------------------------------------------------------------------------- equation 3


def loss_gradient_y1(gradient_z2: Array, w2: Array) -> Array:
    """Equation 3, ∂E/∂y1 = ∂E/∂z2 ∂z2/∂y1 = (y2 − t)ᵀ W2.

    Paper: question 3, last line.

    Args:
        gradient_z2: ∂E/∂z2 from equation 2, shape (K,).
        w2: shape (K, H). It is the Jacobian ∂z2/∂y1.

    Returns:
        The row vector ∂E/∂y1, shape (H,).
    """
    return gradient_z2 @ w2


# ---------------------------------------------------------------------------- equation 4


def loss_gradient_w2(gradient_z2: Array, y1: Array) -> Array:
    """Equation 4, ∂E/∂W2_uv = (∂E/∂z2)_u y1_v = (y2_u − t_u) y1_v.

    Paper: question 4, third and last line. Slip 6: the second line, ∂E/∂z2 · y1_v, is a vector;
    its component u is meant.

    Args:
        gradient_z2: ∂E/∂z2 from equation 2, shape (K,).
        y1: the hidden values, shape (H,).

    Returns:
        ∂E/∂W2, shape (K, H), row u and column v.
    """
    return gradient_z2[:, None] * y1[None, :]


# ---------------------------------------------------------------------------- equation 5


def sigmoid_jacobian(y1: Array) -> Array:
    """Equation 5, ∂y1/∂z1 = diag(y1 * (1 − y1)).

    Paper: question 5, last line. Slip 7: two lines on the way have a factor 1 + exp(−z) too many.
    Slip 8: the matrix is printed 10 × 10; it is H × H.

    Args:
        y1: the hidden values σ(z1), shape (H,).

    Returns:
        The Jacobian, shape (H, H), row i for y1_i and column j for z1_j.
    """
    return jnp.diag(y1 * (1 - y1))


# ---------------------------------------------------------------------------- equation 6


def loss_gradient_z1(gradient_y1: Array, y1: Array) -> Array:
    """Equation 6, ∂E/∂z1 = ∂E/∂y1 ∂y1/∂z1 = (y2 − t)ᵀ W2 diag(y1 * (1 − y1)).

    Paper: question 6, last line. Slip 9: it prints (y1 − t); equation 3 has (y2 − t).

    Args:
        gradient_y1: ∂E/∂y1 from equation 3, shape (H,).
        y1: the hidden values, shape (H,).

    Returns:
        The row vector ∂E/∂z1, shape (H,).
    """
    return gradient_y1 @ sigmoid_jacobian(y1)


# ---------------------------------------------------------------------------- equation 7


def loss_gradient_w1(gradient_z1: Array, x: Array) -> Array:
    """Equation 7, ∂E/∂W1_uv = (∂E/∂z1)_u x_v.

    Paper: question 7, last line. Slip 10: the line before it multiplies ∂z1_u/∂W1_uv = x_v in
    twice, which would be x_v².

    Args:
        gradient_z1: ∂E/∂z1 from equation 6, shape (H,).
        x: the inputs, shape (D,).

    Returns:
        ∂E/∂W1, shape (H, D), row u and column v.
    """
    return gradient_z1[:, None] * x[None, :]


# ---------------------------------------------------------------------------- all together


def loss_gradients(w1: Array, w2: Array, x: Array, t: Array, n: int = 1) -> tuple[Array, Array]:
    """Equations 2, 3, 4, 6 and 7 in turn (5 is inside 6): backpropagation for one example.

    Paper: the seven questions together.

    Args:
        w1: shape (H, D).
        w2: shape (K, H).
        x: shape (D,).
        t: the target, shape (K,), of any total.
        n: N, as in equation 1.

    Returns:
        ∂E/∂W1 of shape (H, D) and ∂E/∂W2 of shape (K, H).
    """
    _, y1, _, y2 = forward(w1, w2, x)
    gradient_z2 = loss_gradient_z2(y2, t, n)
    gradient_y1 = loss_gradient_y1(gradient_z2, w2)
    gradient_w2 = loss_gradient_w2(gradient_z2, y1)
    gradient_z1 = loss_gradient_z1(gradient_y1, y1)
    gradient_w1 = loss_gradient_w1(gradient_z1, x)
    return gradient_w1, gradient_w2
