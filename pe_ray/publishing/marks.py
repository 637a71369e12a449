"""The mark of images that a trained algorithm made, as IPTC defines it, in XMP.

The EU AI Act (article 50) asks for a machine-readable mark. Readers of XMP find this one in a PNG's
chunk `iTXt` with the keyword `XML:com.adobe.xmp`.
"""

from __future__ import annotations

from pe_ray.files.png import make_chunk
from pe_ray.verifying.published import SOURCE_TYPE

_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
_HEADER_BYTES = 33  # a PNG's signature and its first chunk, IHDR

MARK = make_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _PACKET.encode())
"""The chunk: keyword, not compressed, no language, no translated keyword, packet."""


def add_mark(png: bytes) -> bytes:
    """Return a PNG with the mark behind its header; its pixels stay the same bytes."""
    return png[:_HEADER_BYTES] + MARK + png[_HEADER_BYTES:]
