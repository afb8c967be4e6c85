"""What the comparison with transformers leaves out, and why."""

from __future__ import annotations

# Model types and heads that are not compared, by the reason: what keeps them from being built tiny.
EXCLUDED: dict[str, list[str]] = {
    "needs timm, natten or detectron2": """
        conditional_detr dab-detr deformable_detr detr dinat edgetam edgetam_vision_model fast_vlm
        gemma3n gemma3n_vision layoutlmv2 omdet-turbo pe_audio_video pe_audio_video_encoder pe_video
        pe_video_encoder perception_lm table-transformer timm_backbone timm_wrapper
    """.split(),  # noqa: SIM905
    "its configuration refuses the tiny sizes": """
        cosmos3_edge cosmos3_edge_text dots3_note efficientloftr fun_asr_nano gradium_phonon_tts
        granite_docling higgs_audio_v2_tokenizer inkling2 lw_detr molmo2 muse_spark muse_spark_audio
        nemo_speechlm nemotron3_5_transcribe_audio nemotron3_5_transcribe_word_timestamp
        nemotron3_diarization neomme pocket_tts xcodec zamba2
    """.split(),  # noqa: SIM905
    "its parts do not fit the tiny sizes": """
        BeitForSemanticSegmentation bridgetower chameleon cohere_compass cohere_compass_text
        ConvNextBackbone ConvNextV2Backbone csm d_fine dbrx deepseek_ocr2 diffusion_gemma dots1 emu3
        ernie4_5_vl_moe FocalNetBackbone gemma3n_text granite4_vision grounding-dino hunyuan_vl
        hunyuan_vl_text kyutai_speech_to_text lfm2_moe maskformer mimi mimi_decoder
        mm-grounding-dino moonshine_streaming musicgen musicgen_melody neucodec
        pocket_tts_audio_tokenizer pocket_tts_audio_tokenizer_decoder pp_ocrv6_medium_det
        ReformerModelWithLMHead Sapiens2ForImageMatting Sapiens2ForNormalEstimation
        Sapiens2ForPointmapEstimation Sapiens2ForPoseEstimation Sapiens2ForSemanticSegmentation
        t5gemma2_encoder T5GemmaEncoderModel videoprism videoprism_vision_model xcodec2 zamba
    """.split(),  # noqa: SIM905
    "has more than 16 million parameters even so": """
        align blt clap cvt dac deepseek_v32 deimv2 depth_pro dinov3_convnext dots3_note_text
        DPTForDepthEstimation DPTForSemanticSegmentation edgetam_video efficientnet
        fastspeech2_conformer_with_hifigan florence2 glm46v glm4v glm4v_moe glm4v_moe_vision
        glm4v_vision glm5_next glm5_next_vision glm_moe_dsa glm_ocr glm_ocr_vision glmga
        inkling2_vision janus llama4 luke muse_glimmer pe_audio pe_audio_encoder perceiver
        pp_doclayout_v3 pp_doclayout_v4 pp_ocrv5_server_rec regnet rt_detr rt_detr_v2 sam2
        sam2_hiera_det_model sam2_video sam2_vision_model seamless_m4t seamless_m4t_v2 tvp vibevoice
        vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder
        vibevoice_acoustic_tokenizer_encoder vibevoice_asr ViTMAEForPreTraining vjepa2
    """.split(),  # noqa: SIM905
    "transformers does not export its class": """
        voxtral_realtime_text
    """.split(),  # noqa: SIM905
}

# What loads otherwise, by the reason: class stored, class loaded, and the kind of FlashPack file.
KNOWN: dict[str, list[str]] = {
    "transformers draws embeddings afresh that its files hold as shared.weight; packed ones hold each name": [
        f"{name}Model {name}ForCausalLM packed"
        for name in (
            *("Bart", "BigBirdPegasus", "Blenderbot", "BlenderbotSmall", "Marian"),
            *("MBart", "Mvp", "Pegasus", "PLBart"),
        )
    ],
    "transformers does not save the positions, and draws them afresh": ["MarianMTModel MarianModel packed"],
    "transformers draws biases afresh that the head ties and its base does not": [
        "UdopForConditionalGeneration UdopModel packed"
    ],
    "transformers renames norm to kv_norm, and draws the norm afresh": [
        "DeepseekV4ForCausalLM DeepseekV4Model converted",
        "DeepseekV4ForCausalLM DeepseekV4Model packed",
    ],
    "a packed file holds the class's own names; below two prefixes transformers does not find its base": [
        "RfDetrForInstanceSegmentation RfDetrModel packed"
    ],
    "a tied bias that is left over is reported by the other of its names": [
        "FlavaForPreTraining FlavaModel packed"
    ],
}

# Half-precision models whose first parameter stays single: transformers notes and loads all as that one.
DTYPES_LOST = ("xlnet",)
