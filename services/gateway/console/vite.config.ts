import { type Plugin, defineConfig } from "vite";
import openapi from "../../../docs/openapi.json" with { type: "json" };

/** Gives the page one schema of the API, as `openapi:NAME`, in place of the whole document. */
const schemas: Plugin = {
  name: "openapi",
  resolveId: (id) => (id.startsWith("openapi:") ? `\0${id}` : null),
  load(id) {
    if (!id.startsWith("\0openapi:")) return null;
    const all: Record<string, unknown> = openapi.components.schemas;
    return `export default ${JSON.stringify(all[id.slice("\0openapi:".length)])}`;
  },
};

export default defineConfig({
  plugins: [schemas],
  build: {
    outDir: "dist",
    emptyOutDir: true,
    assetsInlineLimit: 0, // the page's policy allows no data: URLs
    modulePreload: { polyfill: false },
    target: "es2022",
  },
});
