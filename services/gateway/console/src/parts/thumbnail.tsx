import { useState } from "preact/hooks";
import { type Image, smallOf } from "../api/types";
import { texts } from "../texts";

/** A small picture; in words if the browser does not get it, as from a bucket of the user's own. */
export function Thumbnail({ image }: { image: Image }) {
  const [isBroken, setBroken] = useState(false);
  if (isBroken) return <span class="hint">{texts.picture.broken}</span>;
  const { width, height } = image;
  return (
    <img src={smallOf(image)!} alt="" width={width} height={height} loading="lazy" decoding="async" onError={() => setBroken(true)} />
  );
}
