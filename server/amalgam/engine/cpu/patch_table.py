"""The table of what this project replaces in vLLM; `patches` puts it in place.

A row names the symbol, what stands in its place, why, and the test that fails without it. vLLM's own ways of being
extended are no replacements: a plugin, a worker's extension, a subclass whose name it is told.

vLLM calls our plugins in each of its processes, so this module imports nothing of vLLM.
"""

from typing import Final

from amalgam.engine.cpu.patch import Patch

_CPU: Final = "amalgam.engine.cpu"
_UNIT: Final = "tests/unit/engine"
_EXPERTS: Final = "tests/models/test_experts_on_cpu.py::test_experts_answer_as_in_transformers_and_lora_is_beside_them"
_LOADING: Final = f"{_UNIT}/cpu/test_loading.py"
_PRELOAD: Final = f"{_UNIT}/cpu/test_preload.py"
_CHECKS: Final = f"{_UNIT}/test_constraint_checks.py"
_PROFILES: Final = "tests/e2e/test_profiles.py"
_PROMPTS: Final = f"{_UNIT}/test_prompt_logprobs.py"
_FORKED: Final = (
    f"{_UNIT}/cpu/test_fork_server.py::test_core_and_worker_are_forked_from_one_server_into_their_askers_environment"
)
_NORMS: Final = f"{_UNIT}/cpu/test_norms.py"
_SPAWNED: Final = f"{_UNIT}/cpu/test_spawned.py"
_WRITTEN: Final = f"{_UNIT}/test_written_answers.py"
_SOUNDS: Final = "tests/models/test_unpacked_sounds.py"
_COLUMNS: Final = "vllm.lora.layers.column_parallel_linear:MergedColumnParallelLinearWithLoRA"
_LINEAR: Final = "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA"

PATCHES: Final[tuple[Patch, ...]] = (
    Patch(
        "vllm.platforms.cpu:CpuPlatform.get_punica_wrapper", "wrapper", f"{_CPU}.plugin:naming_our_wrapper",
        "vLLM's own LoRA products on CPU change rows of the base model, and grow slower with every adapter in a batch",
        f"{_UNIT}/cpu/test_plugin.py::test_cpu_platform_names_our_wrapper",
    ),
    Patch(
        "vllm.platforms.cpu:CpuPlatform.register_triton_kernel_overrides", "begin", f"{_CPU}.worker_start:beginning",
        "it is what a worker calls before it builds a model, and no other process does", _EXPERTS,
    ),
    Patch(
        "vllm.platforms.cpu:CpuPlatform.import_ir_kernels", "begin", f"{_CPU}.norms:making_known",
        "vLLM's kernels for CPU that normalise are in its build, and are not made known on this platform",
        f"{_NORMS}::test_they_are_chosen_on_cpu",
    ),
    Patch(
        "vllm.platforms.cpu:CpuPlatform.get_default_ir_op_priority", "begin", f"{_CPU}.norms:preferring",
        "ten calls of torch would be chosen, twice a layer, where a kernel is one",
        f"{_NORMS}::test_they_are_chosen_on_cpu",
    ),
    Patch(
        "vllm.model_executor.layers.fused_moe.layer:FusedMoEConfig", "experts", f"{_CPU}.moe:without_lora",
        "experts that are told of LoRA take a Triton kernel on every platform, and the first step on CPU ends in it",
        _EXPERTS,
    ),
    Patch(
        "vllm.lora.model_manager:is_moe_model", "experts", f"{_CPU}.moe:having_no_experts",
        "LoRA's manager would prepare for adapters of experts, which are refused on CPU", _EXPERTS,
    ),
    Patch(
        "vllm.lora.utils:is_moe_model", "experts", f"{_CPU}.moe:having_no_experts",
        "the names of the model's packed modules are asked for by the same question", _EXPERTS,
    ),
    Patch(
        "vllm.lora.model_manager:is_supported_lora_module", "experts", f"{_CPU}.moe:but_experts",
        "experts are left alone when LoRA layers are built", _EXPERTS,
    ),
    Patch(
        "vllm.lora.model_manager:get_supported_lora_modules", "experts", f"{_CPU}.moe:but_their_names",
        "an adapter of experts or of what routes to them that came this far is an error, and not left unread", _EXPERTS,
    ),
    Patch(
        "vllm.lora.model_manager:process_packed_modules_mapping", "experts", f"{_CPU}.packed_names:as_stored",
        "vLLM would look for GLM-4's gate and up by themselves, and leave an adapter of both in one unread",
        f"{_UNIT}/cpu/test_packed_names.py::test_of_glm_4_gate_and_up_are_one",
    ),
    Patch(
        "vllm.lora.lora_model:LoRAModel.from_local_checkpoint", "layers", f"{_CPU}.loading:mapped_checkpoint",
        "vLLM reads and converts an adapter tensor by tensor between two steps; here its file is mapped",
        f"{_LOADING}::test_a_checkpoint_is_mapped_with_its_scale_beside_it",
    ),
    Patch(
        "vllm.lora.peft_helper:PEFTHelper._match_pattern", "objects", f"{_CPU}.module_values:look_up_by_name",
        "it compiles every key of `rank_pattern` and `alpha_pattern` for every module; names are looked up here",
        f"{_LOADING}::test_ranks_of_their_own_for_many_modules_are_looked_up_and_never_compiled",
    ),
    Patch(
        "vllm.lora.model_manager:LoRAModelManager._create_merged_loras_inplace", "layers",
        f"{_CPU}.loading:kept_scales",
        "it multiplies each B by its scale, which would be a copy of it; our products multiply by the scale themselves",
        f"{_LOADING}::test_a_scale_is_kept_for_our_layers_and_multiplied_in_for_others",
    ),
    Patch(
        "vllm.lora.layers.base_linear:_get_lora_device", "layers", f"{_CPU}.loading:on_cpu",
        "without AMX a layer of int8 leaves its weight to oneDNN and has none, and the engine would not start",
        f"{_LOADING}::test_a_layer_whose_weight_is_packed_away_is_on_the_processor",
    ),
    Patch(
        f"{_LINEAR}.create_lora_weights", "layers", f"{_CPU}.loading:without_stacks",
        "vLLM's stacked tensors are padded to the largest rank for every slot, and nothing reads them here",
        f"{_LOADING}::test_a_layer_is_given_what_is_stored",
    ),
    Patch(
        f"{_LINEAR}.set_lora", "layers", f"{_CPU}.loading:storing",
        "it copies the factors into stacked tensors that are not there; here they go where they are multiplied",
        f"{_LOADING}::test_a_layer_is_given_what_is_stored",
    ),
    Patch(
        f"{_COLUMNS}.create_lora_weights", "layers", f"{_CPU}.loading:without_stacks",
        "the class has a method of its own beside its parent's",
        f"{_LOADING}::test_a_layer_is_given_what_is_stored",
    ),
    Patch(
        f"{_COLUMNS}.set_lora", "layers", f"{_CPU}.loading:storing",
        "the class has a method of its own beside its parent's",
        f"{_LOADING}::test_a_layer_is_given_what_is_stored",
    ),
    Patch(
        f"{_LINEAR}.reset_lora", "layers", f"{_CPU}.loading:storing_nothing",
        "it writes zeros into stacked tensors that are not there",
        f"{_LOADING}::test_a_slice_without_factors_and_a_layer_without_any_keep_the_base",
    ),
    Patch(
        f"{_LINEAR}._apply_sync", "layers", f"{_CPU}.fused:fusing",
        "LoRA added after a layer's product reads and writes all of it once more; here both are one pass",
        f"{_UNIT}/cpu/test_fused.py::test_a_layer_multiplies_in_one_pass",
    ),
    Patch(
        "vllm.distributed.device_communicators.shm_broadcast:SpinCondition.wait", "waits", f"{_CPU}.waits:asleep",
        "a process that waits looks for messages without a pause, and takes a core from the worker's threads",
        f"{_UNIT}/cpu/test_waits.py::test_a_reader_sleeps_and_hears_all_the_same",
    ),
    Patch(
        "vllm.v1.worker.gpu_model_runner:count_nans_per_row", "steps", "amalgam.engine.finite_answers:quick_count",
        "on CPU vLLM's count of NaN takes ten times as long as a sum that says as much",
        f"{_PRELOAD}::test_a_worker_that_listens_counts_nan_quickly",
    ),
    Patch(
        "vllm.v1.engine.utils:get_mp_context", "objects", f"{_CPU}.fork_server:ForkServer.adopt_core",
        "vLLM would spawn its core, which then imports for seconds what the fork server has imported already", _FORKED,
    ),
    Patch(
        "vllm.v1.executor.multiproc_executor:get_mp_context", "objects", f"{_CPU}.fork_server:adopt_worker",
        "vLLM would spawn its worker likewise", _FORKED,
    ),
    Patch(
        "vllm.v1.engine.utils:get_mp_context", "objects", "amalgam.engine.spawned:adopt_spawned_core",
        "where vLLM spawns its core, the core is started without tokens for fetching in its environment",
        f"{_SPAWNED}::test_spawned_processes_have_a_token_only_while_they_load",
    ),
    Patch(
        "vllm.v1.executor.multiproc_executor:get_mp_context", "objects", "amalgam.engine.spawned:adopt_spawned_workers",
        "the same of its workers",
        f"{_SPAWNED}::test_spawned_processes_have_a_token_only_while_they_load",
    ),
    Patch(
        "vllm.v1.engine.coordinator:get_mp_context", "objects", "amalgam.engine.spawned:adopt_spawned_core",
        "what stands before several cores fetches nothing, and is to have no token for it",
        f"{_SPAWNED}::test_a_process_that_loads_nothing_is_given_nothing",
    ),
    Patch(
        "vllm.v1.executor.abstract:Executor.__init__", "objects", "amalgam.engine.spawned:forget_when_loaded",
        "with its end the model is loaded, and a core needs no token for fetching any more",
        f"{_SPAWNED}::test_spawned_processes_have_a_token_only_while_they_load",
    ),
    Patch(
        "vllm.v1.executor.multiproc_executor:WorkerProc.__init__", "objects",
        "amalgam.engine.spawned:forget_when_loaded",
        "the same of a worker in a process of its own",
        f"{_SPAWNED}::test_spawned_processes_have_a_token_only_while_they_load",
    ),
    Patch(
        "vllm.lora.worker_manager:WorkerLoRAManager._load_adapter", "objects",
        f"{_CPU}.preload:PreloadingWorker.listen_for_preloads",
        "a step uses what was read before it began, instead of reading it itself",
        f"{_PRELOAD}::test_a_step_uses_what_was_read_beside_it_once",
    ),
    Patch(
        "vllm.lora.worker_manager:WorkerLoRAManager.remove_adapter", "objects",
        f"{_CPU}.preload:PreloadingWorker.listen_for_preloads",
        "what was read of an adapter that is freed before its step must not be used for a later one",
        f"{_PRELOAD}::test_an_adapter_that_is_freed_before_its_step_is_read_anew",
    ),
    Patch(
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs", "objects",
        "amalgam.engine.finite_answers:watch_answers",
        "values that are not finite have to be seen before a client sees what came of them",
        f"{_UNIT}/test_finite_answers.py::test_nan_is_told_and_nothing_of_that_step_is_answered",
    ),
    Patch(
        "vllm.v1.engine.output_processor:OutputProcessor.add_request", "objects",
        "amalgam.engine.token_usage:count_tokens",
        "a request's prompt is charged to who asked, once for all of its choices",
        f"{_UNIT}/test_token_counts.py::test_choices_share_a_prompt",
    ),
    Patch(
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs", "objects",
        "amalgam.engine.token_usage:count_tokens",
        "what a request makes the engine generate is charged to who asked, also where its answer is given up",
        f"{_UNIT}/test_token_counts.py::test_what_was_generated_counts_when_the_client_has_left",
    ),
    Patch(
        "vllm.v1.engine.async_llm:AsyncLLM.add_request", "objects",
        "amalgam.engine.constraint_checks:ConstraintChecks.stand_before",
        "it parses a request's constraint on the event loop that sends every stream its tokens",
        f"{_CHECKS}::test_the_loop_goes_on_while_a_constraint_is_checked",
    ),
    Patch(
        "vllm.v1.engine.async_llm:AsyncLLM.shutdown", "objects",
        "amalgam.engine.constraint_checks:ConstraintChecks.stand_before",
        "the threads that check constraints end with the client that they check for",
        f"{_CHECKS}::test_the_threads_end_with_the_client",
    ),
    Patch(
        "vllm.v1.engine.async_llm:AsyncLLM.generate", "objects",
        "amalgam.engine.prompt_logprobs:PromptLogprobs.stand_before",
        "log-probabilities of a prompt are written on a thread before an answer that has them is given",
        f"{_PROMPTS}::test_it_is_what_vllm_writes_and_on_a_thread",
    ),
    Patch(
        "vllm.v1.engine.output_processor:OutputProcessor.process_outputs", "objects",
        "amalgam.engine.prompt_logprobs:PromptLogprobs.stand_before",
        "what was received of a prompt's log-probabilities is put by before vLLM would write it on the event loop",
        f"{_PROMPTS}::test_it_is_what_vllm_writes_and_on_a_thread",
    ),
    Patch(
        "vllm.v1.engine.async_llm:AsyncLLM.shutdown", "objects",
        "amalgam.engine.prompt_logprobs:PromptLogprobs.stand_before",
        "the thread that writes log-probabilities ends with the client that it writes for",
        f"{_PROMPTS}::test_its_thread_ends_with_the_client",
    ),
    Patch(
        "vllm.v1.engine.logprobs:LogprobsProcessor.prompt_logprobs", "objects",
        "amalgam.engine.prompt_logprobs:_put_by",
        "what a prompt's log-probabilities are written into remembers the tensors until then",
        f"{_PROMPTS}::test_it_is_what_vllm_writes_and_on_a_thread",
    ),
    Patch(
        "vllm.v1.engine:EngineCoreOutput.new_prompt_logprobs_tensors", "objects",
        "amalgam.engine.prompt_logprobs:_put_by",
        "tensors that were put by are not written a second time, on the event loop",
        f"{_PROMPTS}::test_it_is_what_vllm_writes_and_on_a_thread",
    ),
    Patch(
        "vllm.renderers.hf:HfRenderer.render_messages_async", "objects", "amalgam.engine.own_templates:let_in",
        "a version's own chat template decides how the contents of messages are read",
        f"{_PROFILES}::test_two_versions_with_two_templates_answer_in_one_batch_as_transformers_renders_them",
    ),
    Patch(
        "vllm.renderers.hf:HfRenderer._apply_chat_template_async", "objects", "amalgam.engine.own_templates:let_in",
        "a version's own chat template is rendered in a process of its own, and never compiled in this one",
        f"{_PROFILES}::test_two_versions_with_two_templates_answer_in_one_batch_as_transformers_renders_them",
    ),
    Patch(
        "vllm.entrypoints.anthropic.serving:AnthropicServingMessages.to_chat_completion_request", "objects",
        "amalgam.engine.own_templates:let_in",
        "Anthropic's dialect has no fields for some defaults of a profile; what its requests are turned into has",
        f"{_PROFILES}::test_every_dialect_counts_the_tokens_of_the_versions_own_template",
    ),
    Patch(
        "vllm.entrypoints.anthropic.serving:AnthropicServingMessages.messages_full_converter", "objects",
        "amalgam.engine.whole_messages:tell_whatever_was_said",
        "vLLM answers 400 where the arguments of a tool's call were cut by the limit of tokens",
        f"{_UNIT}/test_whole_messages.py::test_a_call_that_the_limit_cut_keeps_what_is_whole",
    ),
    Patch(
        "vllm.tool_parsers.structural_tag_registry:get_model_structural_tag", "objects",
        "amalgam.engine.object_arguments:bind_to_objects",
        "arguments of a forced tool that is not strict may be any JSON value, and are in a stream before they are read",
        f"{_UNIT}/test_object_arguments.py::test_a_forced_call_takes_objects_alone_whatever_the_parser",
    ),
    Patch(
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.chat_completion_full_generator", "objects",
        "amalgam.engine.written_answers:_hook_chat",
        "it makes an answer with log-probabilities in one go, on the event loop; here it is made on a thread",
        f"{_WRITTEN}::test_an_answer_is_what_vllm_writes",
    ),
    Patch(
        "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.request_output_to_completion_response",
        "objects", "amalgam.engine.written_answers:_hook_completion",
        "the same of completions",
        f"{_WRITTEN}::test_an_answer_is_what_vllm_writes",
    ),
    Patch(
        "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses.responses_full_generator", "objects",
        "amalgam.engine.written_answers:_hook_responses",
        "the same of the Responses dialect",
        f"{_WRITTEN}::test_an_answer_is_what_vllm_writes",
    ),
    Patch(
        "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat._create_chat_logprobs", "objects",
        "amalgam.engine.written_answers:_hook_chat",
        "it makes all objects of an answer at once, which the collector of garbage then looks at over and over",
        f"{_WRITTEN}::test_the_loop_goes_on_while_a_long_answer_is_written",
    ),
    Patch(
        "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses._create_response_logprobs", "objects",
        "amalgam.engine.written_answers:_hook_responses",
        "the same of the Responses dialect",
        f"{_WRITTEN}::test_the_loop_goes_on_while_a_long_answer_is_written",
    ),
    Patch(
        "vllm.entrypoints.openai.responses.serving:OpenAIServingResponses.responses_stream_generator", "objects",
        "amalgam.engine.written_answers:_hook_responses",
        "the last events of a stream repeat every log-probability of the answer",
        f"{_WRITTEN}::test_the_last_events_of_a_stream_are_what_vllm_writes",
    ),
    Patch(
        "vllm.entrypoints.pooling.embed.serving:ServingEmbedding.json_response_cls", "objects",
        "amalgam.engine.written_answers:let_write",
        "thousands of embeddings become text in one go, which keeps the interpreter's lock",
        f"{_WRITTEN}::test_embeddings_are_what_vllm_writes",
    ),
    Patch(
        "vllm.sampling_params:SamplingParams._validate_structured_outputs", "objects",
        "amalgam.engine.constraint_checks:ConstraintChecks.check",
        "what a thread has checked is not checked again on the event loop",
        f"{_CHECKS}::test_a_constraint_is_checked_once_and_on_a_thread",
    ),
    Patch(
        "vllm.multimodal.audio:AudioResampler.resample", "objects",
        "amalgam.engine.sound_rates:resample_with_what_there_is",
        "it asks torchaudio alone, which does not import beside a CPU's torch",
        f"{_UNIT}/test_sound_rates.py::test_a_sound_of_another_rate_is_resampled_by_what_is_installed",
    ),
    Patch(
        "vllm.multimodal.media.audio:AudioMediaIO.load_bytes", "objects",
        "amalgam.engine.sound_values:hear_numbers_alone",
        "one sample that is no number makes an answer that is not finite, which restarts the engine",
        f"{_UNIT}/test_sound_values.py::test_a_sound_that_no_model_can_hear_is_the_requests_fault",
    ),
    Patch(
        "vllm.multimodal.media.audio:load_audio_pyav", "objects",
        "amalgam.engine.sound_samples:unpack_sounds_as_they_are",
        "it gives samples of whole numbers as they are, 32,768 times too loud, and takes two channels for one",
        f"{_SOUNDS}::test_av_gives_the_samples_that_are_in_the_file",
    ),
    Patch(
        "vllm.multimodal.media.audio:_AUDIO_LOADERS", "objects",
        "amalgam.engine.sound_samples:unpack_sounds_as_they_are",
        "the same where av is asked for by `--media-io-kwargs`",
        f"{_SOUNDS}::test_av_gives_the_samples_that_are_in_the_file",
    ),
    Patch(
        "transformers:PreTrainedTokenizerBase.decode", "objects", "amalgam.engine.token_texts:remember_short_texts",
        "with log-probabilities vLLM asks its tokenizer for the text of each alternative, several times, on the event "
        "loop",
        f"{_CHECKS}::test_short_texts_are_asked_of_the_tokenizer_once",
    ),
    Patch(
        "vllm.v1.metrics.loggers:PrometheusStatLogger.gauge_lora_info", "objects",
        "amalgam.engine.engine_metrics:drop_combinations",
        "the gauge has a series for every combination of adapters that was ever in a batch, and none of them goes",
        f"{_UNIT}/test_engine_metrics.py::test_no_series_for_a_combination_of_adapters_is_recorded_or_shown",
    ),
    Patch(
        "vllm.v1.engine.core_client:BackgroundResources.engine_dead", "objects",
        "amalgam.engine.vllm_client:refuse_all",
        "a request that is on its way to a core that hangs is to be refused, instead of waiting for ever",
        f"{_UNIT}/test_vllm_client.py::test_a_request_on_its_way_to_a_lost_core_is_refused",
    ),
)  # fmt: skip
