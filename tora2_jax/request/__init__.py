"""The request file, checked."""

from tora2_jax.request.load import (
    Request,
    RequestError,
    for_each,
    load_request,
    load_requests,
    parse_request,
    request_names,
    size_problems,
    validate,
    with_defaults,
)

__all__ = [
    "Request",
    "RequestError",
    "for_each",
    "load_request",
    "load_requests",
    "parse_request",
    "request_names",
    "size_problems",
    "validate",
    "with_defaults",
]
