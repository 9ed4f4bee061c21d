/** The texts in a PNG: its tEXt and iTXt chunks, as the PNG standard has them. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const HEAD_BYTES = 8;
/** Of a chunk beside its content: length, type and checksum. */
const CHUNK_BYTES = 12;

/** @returns texts by keyword; null: this is no PNG. */
export function textsOf(file: Uint8Array): Map<string, string> | null {
  if (SIGNATURE.some((byte, index) => file[index] !== byte)) return null;
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const texts = new Map<string, string>();
  for (let place = HEAD_BYTES; place + CHUNK_BYTES <= file.length; ) {
    const length = view.getUint32(place);
    const type = latin(file.subarray(place + 4, place + 8));
    const content = file.subarray(place + 8, place + 8 + length);
    if (content.length < length) break; // cut off
    const text = type === "tEXt" ? plain(content) : type === "iTXt" ? international(content) : null;
    if (text) texts.set(...text);
    place += CHUNK_BYTES + length;
  }
  return texts;
}

type Text = [keyword: string, text: string];

function plain(content: Uint8Array): Text | null {
  const end = content.indexOf(0);
  return end < 0 ? null : [latin(content.subarray(0, end)), latin(content.subarray(end + 1))];
}

/** Keyword, compression flag and method, language, translated keyword, and the text in UTF-8. */
function international(content: Uint8Array): Text | null {
  const end = content.indexOf(0);
  const isCompressed = content[end + 1] === 1;
  const language = content.indexOf(0, end + 3);
  const translated = content.indexOf(0, language + 1);
  if (end < 0 || isCompressed || language < 0 || translated < 0) return null;
  return [latin(content.subarray(0, end)), new TextDecoder().decode(content.subarray(translated + 1))];
}

/** Each byte is a letter; the browser's own "latin1" decoder is Windows-1252. */
function latin(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}
