"""Conversations: who spoke when, each talker on one track, and labels for people and other programs.

`Conversation` is a finisher: it stands between the estimates of a model and the tracks that are written
(`Separator.separate_file(..., finisher=Conversation(segments=True))`). It goes over a recording in pieces and
remembers a few numbers for every 20 ms. `segments` makes RTTM, JSON, WebVTT and Audacity labels of activity.
"""

from flasepformer.conversation.activity import ActivityRule, activity_of
from flasepformer.conversation.conversation import Conversation
from flasepformer.conversation.segments import (
    Segment,
    as_audacity_labels,
    as_json,
    as_rttm,
    as_webvtt,
    overlaps_of,
    segments_of,
)
from flasepformer.conversation.timeline import can_draw, draw_timeline

__all__ = [
    "ActivityRule",
    "Conversation",
    "Segment",
    "activity_of",
    "as_audacity_labels",
    "as_json",
    "as_rttm",
    "as_webvtt",
    "can_draw",
    "draw_timeline",
    "overlaps_of",
    "segments_of",
]
