/** A schema of the API's document; vite.config.ts serves it. */
declare module "openapi:*" {
  interface Field {
    enum?: (string | number | null)[];
    minimum?: number;
    maximum?: number;
    default?: unknown;
  }
  const schema: { properties: Record<string, Field> };
  export default schema;
}
