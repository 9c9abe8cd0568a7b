import org.apache.hadoop.fs.Path;
import org.apache.parquet.example.data.Group;
import org.apache.parquet.hadoop.ParquetReader;
import org.apache.parquet.hadoop.example.GroupReadSupport;

/** Prints the rows of files of table vectors with parquet-java's own record reader: request, layer, position, bits of vec. */
class PrintVectors {
    public static void main(String[] files) throws Exception {
        for (String file : files) {
            try (ParquetReader<Group> reader = ParquetReader.builder(new GroupReadSupport(), new Path(file)).build()) {
                for (Group row = reader.read(); row != null; row = reader.read()) {
                    StringBuilder line = new StringBuilder();
                    line.append(row.getString("request", 0)).append(' ').append(row.getInteger("layer", 0)).append(' ')
                        .append(row.getInteger("position", 0));
                    if (row.getFieldRepetitionCount("vec") == 1) {
                        Group vec = row.getGroup("vec", 0);
                        for (int i = 0; i < vec.getFieldRepetitionCount("list"); i++) {
                            float element = vec.getGroup("list", i).getFloat("element", 0);
                            line.append(' ').append(Integer.toHexString(Float.floatToRawIntBits(element)));
                        }
                    }
                    System.out.println(line);
                }
            }
        }
    }
}
