"""Weights of others, selected from what a file holds and matched with a network's own."""

import math
import re
from collections import Counter

import torch

from memorization.errors import WrongUse, shorten
from memorization.imports.pickles import DEEPEST, Opaque

NAMED = 5  # keys named in a message
POSITIONS = re.compile("pos(ition(al)?)?_?embed")  # in keys of position embeddings
MOST_EXTRA = 16  # tokens beside the patches: of the class, of distillation, registers


def select_weights(content, at):
    """The weights in what a file holds, as {key: tensor}.

    content: of `read_weights_file`. at: the place of the weights: keys joined by dots, such as
    "state_dict", "teacher" or "model.backbone"; positions in a list are numbers. None if there is
    one place alone. Entries that are no tensors are left out.

    Raises WrongUse, listing the places that hold tensors, if there is no such place, or several and
    no `at`. The message does not name the file.
    """
    place = place_of_weights(content, at)
    (weights,) = _weights_at(content, place)
    for key, value in weights.items():
        if isinstance(value, Opaque) and value.name.startswith(("torch._", "safetensors ")):
            fault = f"{_shown(key)} in it is a tensor of a kind that is not read"
            raise WrongUse(f"{_shown_place(place)}: {fault} ({value.name})")
    return {key: value for key, value in weights.items() if _is_weight(key, value)}


def place_of_weights(content, at):
    """The place of the weights in what a file holds: `at`, or the only one that there is, "" if
    that is the file's top level. See `select_weights`.
    """
    places = find_places(content)
    if at is None:
        if not places:
            raise WrongUse(f"no weights: {_described(content)}")
        if len(places) > 1:
            raise WrongUse(f"at: weights lie in several places; name one: {_listed(places)}")
        (at,) = places
    n_places = len(_weights_at(content, at))
    if n_places != 1:
        fault = "leads to several places" if n_places else "holds no tensors"
        held = f"tensors are in {_listed(places)}" if places else _described(content)
        raise WrongUse(f"at: {at!r} {fault}; {held}")
    return at


def weights_in_words(weights, place):
    """How many weights lie at a place of a file, and in which types, for the screen."""
    floats = {value.dtype for value in weights.values() if value.is_floating_point()}
    types = sorted(str(dtype).removeprefix("torch.") for dtype in floats)
    cast = ", cast to float32" if floats - {torch.float32} else ""
    numbers = sum(value.numel() for value in weights.values())
    words = f"{len(weights)} tensors, {numbers:,} numbers of {', '.join(types)}{cast}"
    return f"weights at {_shown_place(place)}: {words}"


def places_of_twins(content, weights):
    """Where else a file has weights of the same names and shapes, as a teacher's beside its
    student's: a list of places in words, such as "'teacher', module.backbone.".

    weights: {key: tensor}, those taken, with the network's keys; the same tensors as in content.
    """
    key, twins = next(iter(weights)), []
    for place in find_places(content):
        (stored, *_) = _weights_at(content, place)
        names = [name for name in stored if isinstance(name, str) and name.endswith(key)]
        for prefix in (name.removesuffix(key) for name in names):
            others = [stored.get(prefix + own) for own in weights]
            is_taken = stored[prefix + key] is weights[key]
            if not is_taken and all(map(_are_twins, others, weights.values())):
                twins.append(", ".join(filter(None, [_shown_place(place), _shown(prefix)])))
    return twins


def _are_twins(other, weight):
    return isinstance(other, torch.Tensor) and other.shape == weight.shape


def find_places(content):
    """{place: number of tensors} of the dicts that hold tensors by name, the largest ones first.

    Tensors beside numbered entries, such as those of an optimizer's state, are no weights.
    """
    places, counts = {}, {}  # counts: of the dicts and lists that were visited, by identity
    waiting = [((), content)]
    while waiting:
        path, value = waiting.pop()
        if id(value) not in counts:  # a file may hold one dict in a million places
            counts[id(value)] = _n_weights(value)
            waiting += [
                ((*path, key), part)
                for key, part in _parts(value)
                if isinstance(key, str) and isinstance(part, (dict, list)) and len(path) < DEEPEST
            ]
        if counts[id(value)]:
            places[".".join(path)] = counts[id(value)]
    return dict(sorted(places.items(), key=lambda item: (-item[1], item[0])))


def _parts(value):
    """(key, value) of a dict's entries, or of a list's with their positions as keys."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from ((str(position), part) for position, part in enumerate(value))


def _is_weight(key, value):
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _n_weights(value):
    """How many tensors a dict holds by name; 0 if they are single numbers, as a best loss is."""
    if not isinstance(value, dict):
        return 0
    tensors = [part for key, part in value.items() if _is_weight(key, part)]
    return len(tensors) if any(tensor.dim() for tensor in tensors) else 0


def _weights_at(content, at):
    """The dicts that hold tensors by name, and to which keys joined by dots lead."""
    return [value for value in _values_at(content, at) if _n_weights(value)]


def _values_at(content, at):
    """The values to which keys joined by dots lead; a key may itself have dots in it."""
    if at == "":
        return [content]
    values = []
    for key, part in _parts(content):
        if key == at:
            values.append(part)
        elif isinstance(key, str) and key and at.startswith(f"{key}."):
            values += _values_at(part, at[len(key) + 1 :])
    return values


def _listed(places):
    shown = [f"{_shown_place(place)} ({n})" for place, n in list(places.items())[:8]]
    more = f" and {len(places) - 8} smaller ones" if len(places) > 8 else ""
    return ", ".join(shown) + f"{more} (numbers of tensors)"


def _shown_place(place):
    return repr(shorten(place, 60)) if place else "the top level, ''"


def _described(content):
    """What a file without weights holds, in words."""
    if isinstance(content, Opaque):
        fault = f"the file holds a {shorten(content.name, 80)}, which is not rebuilt"
        return f"{fault}, as nothing in a file is executed; save its state_dict()"
    if isinstance(content, dict):
        parts = [
            f"{_shown(key)} ({shorten(getattr(part, 'name', type(part).__name__), 60)})"
            for key, part in list(content.items())[:NAMED]
        ]
        return f"the file holds {', '.join(parts) or 'an empty dict'}"
    return f"the file holds a {type(content).__name__}"


def strip_prefixes(weights, strip):
    """The same weights with shorter keys.

    strip: prefixes, in order. Each is taken, once, from the keys that begin with it, and from no
    other; a key that begins with none stays as it is. A prefix is a whole text, not a set of
    letters: "backbone." leaves "bn1.weight" alone.

    Raises WrongUse if no key begins with a prefix, or if two keys become one.
    """
    for prefix in strip:
        if not prefix or not any(key.startswith(prefix) for key in weights):
            begins = _beginnings(weights)
            raise WrongUse(f"strip: no key begins with {prefix!r}; the keys begin with {begins}")
        shorter = {}
        for key, value in weights.items():
            new = key[len(prefix) :] if key.startswith(prefix) else key
            if new in shorter:
                raise WrongUse(f"strip: without {prefix!r}, two keys are both {_shown(new)}")
            shorter[new] = value
        weights = shorter
    return weights


def match_weights(weights, network, unused):
    """A state dict for `network.load_state_dict(state, strict=True)`, on the CPU.

    weights: {key: tensor}, with the network's keys. unused: prefixes of keys (as they are once
    stripped) that the network need not have. Numbers are cast to the network's type: float16,
    bfloat16 and float64 to float32. No output depends on num_batches_tracked, which old files have
    not, and which is no whole number if all of a file was cast: then it is the network's own.

    Raises WrongUse, naming up to five keys of each kind, if keys are missing or left over, or if
    shapes, types or values do not fit.
    """
    own = network.state_dict()
    optional = [key for key in own if key.split(".")[-1] == "num_batches_tracked"]
    missing = [key for key in own if key not in weights and key not in optional]
    extra = [key for key in weights if key not in own and not key.startswith(tuple(unused))]
    if missing or extra:
        raise WrongUse(_names_fault(missing, extra, weights, own))
    shapes = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    if shapes:
        raise WrongUse(_shapes_fault(shapes, weights, own))
    counts = [key for key in optional if key in weights and not weights[key].is_floating_point()]
    taken = [key for key in own if key not in optional or key in counts]
    return own | {key: _cast(key, weights[key], own[key]) for key in taken}


def _cast(key, weight, own):
    """A copy of a weight in the type of the network's own. Raises WrongUse if it is not finite, or
    if one of them is whole numbers and the other is not.
    """
    if weight.is_floating_point() != own.is_floating_point():
        raise WrongUse(f"{_shown(key)}: {weight.dtype} in the file, {own.dtype} in the network")
    result = weight.to(own.dtype, memory_format=torch.contiguous_format, copy=True)
    if not result.isfinite().all():
        raise WrongUse(f"{_shown(key)}: not finite in the file, or too large for {own.dtype}")
    return result


def _names_fault(missing, extra, weights, own):
    """What a message says of keys that do not fit."""
    faults = []
    if missing:
        faults.append(f"{len(missing)} of the network's {len(own)} keys are missing: ")
        faults[-1] += _some(missing)
    if extra:
        faults.append(f"{len(extra)} of the file's {len(weights)} keys are left over: ")
        faults[-1] += _some(extra)
    return "; ".join([*faults, _hint(missing, extra, weights, own)])


def _hint(missing, extra, weights, own):
    """What a user can write to make the keys fit, or how the file's and the network's begin."""
    if not missing:
        return "if the encoder has no use for them, `unused` takes what they begin with"
    prefixes = _common_prefixes(missing, extra)
    if prefixes:
        parts = [f"{_shown(prefix)} ({n})" for prefix, n in prefixes]
        return f"`strip` of {' or '.join(parts)} would find that many of those missing"
    nested = next((key for key in extra if re.search(r"blocks\.\d+\.\d+\.", key)), None)
    if nested and any(re.search(r"blocks\.\d+\.\D", key) for key in missing):
        fault = f"the file's blocks are nested in chunks ({_shown(nested)})"
        return f"{fault}; docs/imports.md shows how to number them one by one"
    longer = _common_prefixes(extra, missing)
    if longer:
        fault = f"the network's keys begin with {_shown(longer[0][0])}, which the file's have not"
        return f"{fault}: another network is needed, or a shorter `strip`"
    return f"the file's keys begin with {_beginnings(weights)}, the network's with " + _beginnings(
        own
    )


def _common_prefixes(missing, extra):
    """[(prefix, number of keys)]: what stands before a missing key in those that are left over."""
    missing, counts = set(missing), Counter()
    for key in extra:
        for match in re.finditer(r"\.", key):
            if key[match.end() :] in missing:
                counts[key[: match.end()]] += 1
    return [(prefix, n) for prefix, n in counts.most_common(3) if 2 * n >= len(missing)]


def _shapes_fault(shapes, weights, own):
    """What a message says of weights of another shape."""
    parts = [
        f"{_shown(key)} {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the "
        "network"
        for key in shapes[:NAMED]
    ]
    more = f" and {len(shapes) - NAMED} more" if len(shapes) > NAMED else ""
    for key in filter(POSITIONS.search, shapes):
        more += _size_that_fits(weights[key].shape, own[key].shape, own)
    count = "1 weight has" if len(shapes) == 1 else f"{len(shapes)} weights have"
    return f"{count} another shape: {'; '.join(parts)}{more}"


def _size_that_fits(shape, own_shape, own):
    """The size of images to which position embeddings belong, in words; "" if it is not known."""
    patches = [
        value.shape[-1]
        for key, value in own.items()
        if value.dim() == 4 and value.shape[-1] == value.shape[-2] > 1
    ]
    if len(set(patches)) != 1 or len(shape) != len(own_shape) or shape[-1] != own_shape[-1]:
        return ""
    for n_extra in range(MOST_EXTRA):
        sides = [math.isqrt(max(n[-2] - n_extra, 0)) for n in (shape, own_shape)]
        if all(side and side**2 == n[-2] - n_extra for side, n in zip(sides, (shape, own_shape))):
            sizes = [side * patches[0] for side in sides]
            return f"; size {sizes[0]} fits the file, and the network has size {sizes[1]}"
    return ""


def _some(keys):
    more = f" and {len(keys) - NAMED} more" if len(keys) > NAMED else ""
    return ", ".join(_shown(key) for key in keys[:NAMED]) + more


def _shown(key):
    return shorten(str(key), 50)


def _beginnings(keys):
    """The most common first parts of keys, with their numbers, in words."""
    counts = Counter(key.split(".")[0] + "." * ("." in key) for key in keys)
    shown = ", ".join(f"{shorten(first, 40)} ({n})" for first, n in counts.most_common(4))
    return shown + (", ..." if len(counts) > 4 else "")
