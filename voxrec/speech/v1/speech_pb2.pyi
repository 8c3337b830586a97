from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PCM16: _ClassVar[Codec]
    OPUS: _ClassVar[Codec]
PCM16: Codec
OPUS: Codec

class Request(_message.Message):
    __slots__ = ("config", "audio")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    config: Config
    audio: Audio
    def __init__(self, config: _Optional[_Union[Config, _Mapping]] = ..., audio: _Optional[_Union[Audio, _Mapping]] = ...) -> None: ...

class Config(_message.Message):
    __slots__ = ("tenant", "device", "sample_rate", "codec", "language", "prompt", "hotwords", "partials", "push_to_talk", "words")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    HOTWORDS_FIELD_NUMBER: _ClassVar[int]
    PARTIALS_FIELD_NUMBER: _ClassVar[int]
    PUSH_TO_TALK_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    device: str
    sample_rate: int
    codec: Codec
    language: str
    prompt: str
    hotwords: _containers.RepeatedScalarFieldContainer[str]
    partials: bool
    push_to_talk: bool
    words: bool
    def __init__(self, tenant: _Optional[str] = ..., device: _Optional[str] = ..., sample_rate: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ..., language: _Optional[str] = ..., prompt: _Optional[str] = ..., hotwords: _Optional[_Iterable[str]] = ..., partials: _Optional[bool] = ..., push_to_talk: _Optional[bool] = ..., words: _Optional[bool] = ...) -> None: ...

class Audio(_message.Message):
    __slots__ = ("seq", "pcm", "end")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PCM_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    seq: int
    pcm: bytes
    end: bool
    def __init__(self, seq: _Optional[int] = ..., pcm: _Optional[bytes] = ..., end: _Optional[bool] = ...) -> None: ...

class Word(_message.Message):
    __slots__ = ("text", "start_ms", "end_ms", "probability")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    START_MS_FIELD_NUMBER: _ClassVar[int]
    END_MS_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    text: str
    start_ms: int
    end_ms: int
    probability: float
    def __init__(self, text: _Optional[str] = ..., start_ms: _Optional[int] = ..., end_ms: _Optional[int] = ..., probability: _Optional[float] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("utterance_id", "is_final", "stability", "text", "words", "confidence", "start_ms", "end_ms", "language")
    UTTERANCE_ID_FIELD_NUMBER: _ClassVar[int]
    IS_FINAL_FIELD_NUMBER: _ClassVar[int]
    STABILITY_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    START_MS_FIELD_NUMBER: _ClassVar[int]
    END_MS_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    utterance_id: str
    is_final: bool
    stability: float
    text: str
    words: _containers.RepeatedCompositeFieldContainer[Word]
    confidence: float
    start_ms: int
    end_ms: int
    language: str
    def __init__(self, utterance_id: _Optional[str] = ..., is_final: _Optional[bool] = ..., stability: _Optional[float] = ..., text: _Optional[str] = ..., words: _Optional[_Iterable[_Union[Word, _Mapping]]] = ..., confidence: _Optional[float] = ..., start_ms: _Optional[int] = ..., end_ms: _Optional[int] = ..., language: _Optional[str] = ...) -> None: ...
