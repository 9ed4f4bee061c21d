import { useState } from "preact/hooks";
import { connections } from "../api/events";
import { steady } from "../state/links";
import { texts } from "../texts";

interface ThumbnailProps {
  link: string;
  alt?: string;
  class?: string;
  width?: number | string;
  height?: number | string;
}

/** A small picture; in words if the browser does not get it, as from a bucket of the user's own, or while the server is away. */
export function Thumbnail({ link, alt = "", class: name = "", width, height }: ThumbnailProps) {
  const [broken, setBroken] = useState("");
  const source = steady(link);
  const attempt = `${connections.value} ${source}`;
  if (broken === attempt) return <span class={`${name} none hint`}>{texts.picture.broken}</span>;
  return <img class={name} src={source} alt={alt} width={width} height={height} loading="lazy" decoding="async" onError={() => setBroken(attempt)} />;
}
