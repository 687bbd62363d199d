"""Fields of other servers' requests that are not honoured here: refused with a next step, or taken without effect."""

from collections.abc import Mapping
from typing import Final

from amalgam.api.fields.table import FieldSpec, refused, without_effect
from amalgam.engine.protocol import Endpoint

_CACHE_HINT: Final = without_effect("a hint to another vendor's cache; prefixes are cached here by themselves")
_NOTHING_STORED: Final = "nothing is stored here; send the whole conversation"
_TEXT_ONLY: Final = "text only is served; leave it out"
_SERVER_OWNED: Final = "the server sets it; leave it out"
_OLD_GUIDED: Final = "send structured_outputs, or response_format"

NOT_HONOURED: Final[Mapping[str, FieldSpec]] = {
    # Hints, labels and accounts of other services.
    "prompt_cache_key": _CACHE_HINT,
    "prompt_cache_retention": _CACHE_HINT,
    "prompt_cache_options": _CACHE_HINT,
    "cache_control": _CACHE_HINT,
    "safety_identifier": without_effect("nobody is watched here"),
    "verbosity": without_effect("the models served here have no such switch"),
    "store": without_effect("nothing is stored here"),
    "metadata": without_effect("nothing is filed here"),
    "client_metadata": without_effect("nothing is filed here"),
    "service_tier": without_effect("there is one tier"),
    "inference_geo": without_effect("inference runs where the server stands"),
    "speed": without_effect("there is one speed"),
    "user_profile_id": without_effect("there are no profiles"),
    "workspace_id": without_effect("there are no workspaces"),
    "access_programs": without_effect("there are none"),
    "diagnostics": without_effect("none are kept"),
    "billing_policy": without_effect("nothing is billed"),
    "fallback_credit_token": without_effect("nothing is billed"),
    "fallbacks": without_effect("the model asked for answers"),
    "betas": without_effect("everything that is served is served without"),
    "context_management": without_effect("the conversation is read as it was sent"),
    "compaction": without_effect("the conversation is read as it was sent"),
    "prediction": without_effect("it would change the speed only"),
    "background_options": without_effect("nothing runs in the background"),
    # vLLM's own that have nothing to act on.
    "request_id": without_effect("the server numbers requests; send X-Request-Id"),
    "session_id": without_effect("requests are not tied to each other"),
    "length_penalty": without_effect("it acts on beam search only"),
    "watermarking": without_effect("no watermark is configured"),
    "mm_payload": without_effect("text only is served"),
    "return_mm_kwargs": without_effect("text only is served"),
    "return_token_offsets": without_effect("vLLM heeds it in rendering only"),
    "routed_experts_prompt_start": without_effect("routed experts are not returned"),
    # What would change the answer.
    "chat_template": refused("the server's own is used; send chat_template_kwargs for what it lets a request choose"),
    "documents": refused("put the documents into a message"),
    "use_beam_search": refused("ask for n answers with logprobs, and take the likeliest"),
    "best_of": refused("ask for n answers with logprobs, and take the best", 1),
    "logprob_token_ids": refused("ask for top_logprobs"),
    "repetition_detection": refused("set repetition_penalty and max_tokens"),
    "previous_response_id": refused(_NOTHING_STORED),
    "conversation": refused(_NOTHING_STORED),
    "previous_input_messages": refused("put them into input"),
    "enable_response_messages": refused("read the items of output"),
    "thread": refused(_NOTHING_STORED),
    "container": refused("no code is run here; send function tools"),
    "mcp_servers": refused("connect to them in the client, and send their tools as functions"),
    "background": refused("send it without, and stream the answer"),
    "moderation": refused("nothing is moderated here; ask a moderation model"),
    "web_search_options": refused("nothing is searched here; send a function tool that does"),
    "functions": refused("send tools"),
    "function_call": refused("send tool_choice", "auto", "none"),
    "modalities": refused(_TEXT_ONLY, ["text"]),
    "audio": refused(_TEXT_ONLY),
    "image": refused(_TEXT_ONLY),
    "prompt_embeds": refused("send prompt"),
    "guided_json": refused(_OLD_GUIDED),
    "guided_regex": refused(_OLD_GUIDED),
    "guided_choice": refused(_OLD_GUIDED),
    "guided_grammar": refused(_OLD_GUIDED),
    "padding": refused("pad in the client"),
    "extra_body": refused("send its fields beside the others, as openai's Python client does with them"),
    # What would reach into the server.
    "cache_salt": refused(_SERVER_OWNED),
    "priority": refused("all are served in turn; leave it out"),
    "kv_transfer_params": refused(_SERVER_OWNED),
    "ec_transfer_params": refused(_SERVER_OWNED),
    "kv_hints": refused(_SERVER_OWNED),
    "mm_processor_kwargs": refused(_TEXT_ONLY),
    "media_io_kwargs": refused(_TEXT_ONLY),
    "vllm_xargs": refused(_SERVER_OWNED),
    "logits_processors": refused("send logit_bias, bad_words or structured_outputs"),
}
"""It holds for every endpoint that does not honour these fields."""
ONE_ENDPOINT: Final[Mapping[Endpoint, Mapping[str, FieldSpec]]] = {
    "responses": {
        "prompt": refused("prompts are not stored here; send instructions and input"),
        "stream_options": without_effect("a stream always ends with its usage"),
        **dict.fromkeys(("max_tokens", "max_completion_tokens"), refused("send max_output_tokens")),
        "response_format": refused("send text.format", {"type": "text"}),
    },
    "messages": {
        "user": without_effect("send metadata.user_id"),
        "stop": refused("send stop_sequences"),
        "response_format": refused("send output_config.format", {"type": "text"}),
    },
    "chat_completions": {
        "max_output_tokens": refused("send max_completion_tokens"),
        "stop_sequences": refused("send stop"),
        **dict.fromkeys(("system", "instructions"), refused("send it as the first message, with the role system")),
    },
    "embeddings": {
        "messages": refused("send input"),
        **dict.fromkeys(
            ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
            without_effect("texts are embedded as they are, without a template"),
        ),
    },
}
"""It holds for one endpoint each, beside the others."""
